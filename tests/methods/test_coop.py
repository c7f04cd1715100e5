"""CoOp, CoCoOp, KgCoOp, ProGrad and DeFo: their equations, counts and invariants; the authors' numbers."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
import two_towers as two
from backbones import golden, shake, tiny
from torch import Tensor

import thrifty
from thrifty.clip import ImageTextModel
from thrifty.core.errors import HalfAdapted, NoSuchSetting, Unfit
from thrifty.methods.kgcoop import TEACHER
from thrifty.methods.prograd import align
from thrifty.methods.prompts.context import Context, arrange, nearest_tokens

BATCH = {"pixel_values": two.pictures()}
LABELS = torch.tensor([0, 3, 1])
SMALL: dict[str, dict[str, Any]] = {"coop": {"length": 3}, "cocoop": {"words": "a photo"}, "kgcoop": {}, "prograd": {"length": 5},
                                    "defo": {"queries": 5, "length": 2}}


class Task:
    """As much of a task as a method asks for its loss."""

    def inputs(self, model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"pixel_values": batch["pixel_values"]}

    def loss(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        return F.cross_entropy(model(**self.inputs(model, batch))["logits"], batch["labels"]), len(batch["labels"])


def put(model: ImageTextModel, method: Any) -> Any:
    return thrifty.attach(model, method, example={"pixel_values": two.pictures(1)})


def context(at: Any) -> Any:
    return next(e for e in at.edits.values() if isinstance(e, Context))


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * max(1.0, float(wanted.abs().max())))


def loss_of(at: Any, model: Any) -> Tensor:
    return at.method.loss(at, Task(), model, {**BATCH, "labels": LABELS})[0]


@pytest.mark.parametrize("name", ["coop_csc", "coop_init", "cocoop"])
def test_the_authors_numbers(name: str) -> None:
    model, _ = two.golden_clip()
    g = golden(f"vlm_{name}")
    length = g["hp/n_ctx"]
    method = {"coop_csc": thrifty.CoOp(length=length, per_class=True), "coop_init": thrifty.CoOp(words="a photo of a"),
              "cocoop": thrifty.CoCoOp()}[name]
    at = thrifty.attach(model, method, example={"pixel_values": g["in/pixel_values"]})
    edit = context(at)
    with torch.no_grad():
        if name == "coop_init":
            start = edit.ctx.clone()
            assert torch.equal(start, model.text.embed(torch.tensor(model.reader.tokens("a photo of a"))))
        edit.ctx.copy_(g["w/ctx"])
        if name == "cocoop":
            for layer, key in ((edit.inner, "w/meta_linear1_"), (edit.outer, "w/meta_linear2_")):
                layer.weight.copy_(g[key + "weight"])
                layer.bias.copy_(g[key + "bias"])
    out = model(g["in/pixel_values"])["logits"]
    close(out, g["out/logits"])
    (out * g["in/probe"]).sum().backward()
    close(edit.ctx.grad, g["grad/ctx"], 5e-5)
    if name == "cocoop":
        close(edit.inner.weight.grad, g["grad/meta_linear1_weight"], 5e-5)
        close(edit.outer.bias.grad, g["grad/meta_linear2_bias"], 5e-5)
        close(F.cross_entropy(out, g["in/labels"]), torch.as_tensor(g["out/training_loss"]))
    else:
        (x, _), _ = edit((), {})
        close(x[0, 0], g["out/prompts"][:, : x.shape[3]])
        close(model.class_features(), g["out/text_features"])


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_words_of_the_template_are_zero_shot(kind: str) -> None:
    model = getattr(two, kind)()
    plain = two.logits(model)
    at = put(model, thrifty.CoOp(words="a photo of a"))
    assert torch.equal(two.logits(model), plain)
    assert [model.reader.tokens("a photo of a")] == nearest_tokens(at) or model.reader.tokens("a photo of a") == nearest_tokens(at)
    loss_of(at, model).backward()
    assert float(context(at).ctx.grad.abs().max()) > 0


def test_counting_by_spaces_leaves_the_rest_of_the_words_where_it_was() -> None:
    model = two.clip()
    model.reader.tokenizer.known["art-photo"] = [5, 2]  # one word of two tokens
    model.classify(two.LABELS, "a art-photo of {}.")
    plain = two.logits(model)
    for method, length in ((thrifty.CoOp(words="a art-photo of"), 4), (thrifty.CoOp(words="a art-photo of", by_spaces=True), 3)):
        at = put(model, method)
        assert context(at).ctx.shape == (length, 16) and torch.equal(two.logits(model), plain)
        at.detach()
    ctx = context(put(model, thrifty.ProGrad(words="a art-photo of", by_spaces=True, length=6))).ctx
    assert not ctx[:3].any() and torch.equal(ctx[3:], model.text.embed(torch.tensor([1, 5, 2])))


def test_copies_for_each_class_are_one_for_all() -> None:
    one, each = two.clip(), two.clip()
    a, b = put(one, thrifty.CoOp(length=3)), put(each, thrifty.CoOp(length=3, per_class=True))
    with torch.no_grad():
        context(b).ctx.copy_(context(a).ctx)
    assert torch.equal(two.logits(one), two.logits(each))
    loss_of(a, one).backward()
    loss_of(b, each).backward()
    torch.testing.assert_close(context(a).ctx.grad, context(b).ctx.grad.sum(0), rtol=1e-4, atol=1e-6)
    started = put(two.clip(), thrifty.CoOp(words="a photo", per_class=True))
    assert torch.equal(context(started).ctx[0], context(started).ctx[3])


def test_positions() -> None:
    texts = two.clip().texts
    name, stop = texts.names[2], texts.stops[2]
    for position, wanted in (("end", [-1, -2, -3, *name]), ("middle", [-1, *name, -2, -3]), ("front", [*name, -1, -2, -3])):
        ids, slots, ends = arrange(texts, 3, position, [])
        row = torch.where(slots[2] >= 0, -1 - slots[2], ids[2]).tolist()
        assert row[: 1 + len(wanted) + 2] == [62, *wanted, *stop, 63], position
        assert ends.tolist() == [1 + 3 + len(n) + 1 for n in texts.names]
        bare = arrange(texts, 0, position, [])[0]
        assert bare[2].tolist() == [62, *name, *stop, 63]
        model = two.clip()
        at = put(model, thrifty.CoOp(length=3, position=position))
        x, ends = model.text.embed(ids), ends[None, None]
        x[slots >= 0] = context(at).ctx.detach()[slots[slots >= 0]]
        with torch.no_grad(), at.disabled():
            features = model.text(x[None, None], ends)[0, 0]
        torch.testing.assert_close(model.class_features().detach(), features)


def test_other_classes_need_no_training() -> None:
    model = two.clip()
    shake(at := put(model, thrifty.CoOp(length=3)))
    before = two.logits(model)
    model.classify(["sea horse", "face", "cat"])
    found = two.logits(model)
    torch.testing.assert_close(found[:, :2], before[:, [3, 0]], rtol=1e-5, atol=1e-5)
    at.detach()
    model = two.clip()
    for method in (thrifty.CoOp(length=3, per_class=True), thrifty.DeFo(queries=5, length=2)):
        at = put(model, method)
        model.classify(["face", "cat"])
        with pytest.raises(Unfit, match="has nothing for 'cat'"):
            two.logits(model)
        model.classify(two.LABELS)
        at.detach()


def test_only_the_vectors_are_saved(tmp_path: Any) -> None:
    for name, numbers in SMALL.items():
        model = two.clip()
        shake(at := put(model, thrifty.methods.make(name, **numbers)))
        at.save(tmp_path / name, unchanged=True)
        fresh = two.clip()
        loaded = thrifty.load(fresh, tmp_path / name, example=BATCH)
        assert torch.equal(two.logits(fresh), two.logits(model)), name
        assert not any("text_model" in key for key in loaded.state())


def by_hand(model: ImageTextModel, at: Any, ctx: Tensor, pixels: Tensor) -> Tensor:
    """Logits of one picture whose vectors are ``ctx`` [M, width]."""
    ids, slots, ends = arrange(model.texts, len(ctx), "end", [])
    x = model.text.embed(ids)
    x = torch.where(slots[..., None] >= 0, ctx[slots.clamp(min=0)], x)
    with at.disabled():
        t = model.text(x[None, None], ends[None, None])[0, 0]
        f = model.image_features(pixels)
    return model.towers.scale() * F.normalize(f, dim=-1) @ F.normalize(t, dim=-1).T


@torch.no_grad()
def test_cocoop_moves_all_vectors_with_the_picture() -> None:
    model = two.clip()
    shake(at := put(model, thrifty.CoCoOp()))
    edit = context(at)
    assert edit.inner.weight.shape == (2, 32) and edit.outer.weight.shape == (16, 2)
    pixels, found = two.pictures(), two.logits(model)
    for b in range(3):
        with at.disabled():
            f = F.normalize(model.image_features(pixels[b : b + 1]), dim=-1)[0]
        ctx = edit.ctx + edit.outer.weight @ (edit.inner.weight @ f + edit.inner.bias).relu() + edit.outer.bias
        torch.testing.assert_close(found[b : b + 1], by_hand(model, at, ctx, pixels[b : b + 1]), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(two.logits(model, pixels[b : b + 1]), found[b : b + 1], rtol=1e-4, atol=1e-4)
    edit.outer.weight.zero_()
    edit.outer.bias.zero_()
    other = two.clip()
    context(put(other, thrifty.CoOp(length=4))).ctx.copy_(edit.ctx)
    torch.testing.assert_close(two.logits(model), two.logits(other), rtol=1e-5, atol=1e-5)
    with pytest.raises(NoSuchSetting, match="per_class"):
        thrifty.attach(two.clip(), thrifty.CoCoOp(per_class=True))


def test_kgcoop_starts_at_what_it_stays_near() -> None:
    model = two.clip()
    with torch.no_grad():
        plain = model(**BATCH)
    at = put(model, thrifty.KgCoOp())
    torch.testing.assert_close(loss_of(at, model), F.cross_entropy(plain["logits"], LABELS), rtol=1e-5, atol=1e-5)
    loss_of(at, model).backward()
    guided = context(at).ctx.grad.clone()
    context(at).ctx.grad = None
    Task().loss(model, {**BATCH, "labels": LABELS})[0].backward()
    torch.testing.assert_close(guided, context(at).ctx.grad, rtol=1e-3, atol=1e-5)
    shake(at)
    t, u = model(**BATCH)["text_embeds"], plain["text_embeds"]
    torch.testing.assert_close(at.memory[TEACHER], u, rtol=1e-5, atol=1e-6)
    apart = 1 - (t * u).sum(-1).mean()
    assert float(apart) > 1e-3
    wanted = F.cross_entropy(model(**BATCH)["logits"], LABELS) + 8 * apart
    torch.testing.assert_close(loss_of(at, model), wanted, rtol=1e-5, atol=1e-5)
    halves = F.cross_entropy(model(**BATCH)["logits"], LABELS) + 4 * (t - u).square().sum(-1).mean()  # as the paper writes it
    torch.testing.assert_close(halves, wanted, rtol=1e-4, atol=1e-4)


def test_prograd_takes_no_step_against_what_was_known() -> None:
    model = two.clip()
    with torch.no_grad():
        guess = model(**BATCH)["logits"].softmax(-1)
    for strength in (1.0, 0.8, 0.0):
        at = put(model, thrifty.ProGrad(length=5, strength=strength))
        ctx = context(at).ctx
        assert not ctx[:1].any() and torch.equal(ctx[1:], model.text.embed(torch.tensor(model.reader.tokens("a photo of a"))))
        shake(at)
        z = model(**BATCH)["logits"]
        (ours,) = torch.autograd.grad(F.cross_entropy(z, LABELS), ctx, retain_graph=True)
        (theirs,) = torch.autograd.grad(-(guess * z.log_softmax(-1)).sum(-1).mean(), ctx)
        along = (ours * theirs).sum()
        wanted = ours if along >= 0 else ours - strength * along / theirs.norm() ** 2 * theirs
        loss = loss_of(at, model)
        torch.testing.assert_close(loss, F.cross_entropy(z, LABELS), rtol=1e-5, atol=1e-5)
        loss.backward()
        torch.testing.assert_close(ctx.grad, wanted, rtol=1e-3, atol=1e-5)
        at.detach()


def test_prograd_aligns_gradients() -> None:
    g, other = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 1.0, 0.0])
    (found,) = align([g], [other], 1.0)
    assert abs(float((found * other).sum())) < 1e-6
    torch.testing.assert_close(align([g], [100 * other], 1.0)[0], found)
    for kept in (torch.tensor([2.0, 1.0, 0.0]), g.new_zeros(3), g):  # orthogonal, without direction, aligned
        assert torch.equal(align([g], [kept], 1.0)[0], g)
    assert torch.equal(align([g], [other], 0.0)[0], g)


def test_defo_with_the_sentences_of_the_classes_is_zero_shot() -> None:
    model = two.clip(labels=["face", "leopard", "cat"])  # names of one token each, so that all sentences are as long
    plain, texts = two.logits(model), model.texts
    inner = texts.ids[0, :, 1:-1]
    at = put(model, thrifty.DeFo(queries=3, length=inner.shape[1], scale=1.0))
    queries, head = at.edits.values()
    assert two.logits(model).shape == (3, 3)
    with torch.no_grad():
        queries.X.copy_(model.text.embed(inner))
        head.V.weight.copy_(torch.eye(3) * model.towers.scale())
        head.V.bias.zero_()
        torch.testing.assert_close(two.logits(model), plain, rtol=1e-5, atol=1e-5)
        shake(at)
        before = two.logits(model)
        order = torch.tensor([2, 0, 1])
        queries.X.copy_(queries.X[order])
        head.V.weight.copy_(head.V.weight[:, order])
    torch.testing.assert_close(two.logits(model), before, rtol=1e-4, atol=1e-4)


def base(classes: int = 10) -> ImageTextModel:
    """CLIP's widths with a large picture tower, and no numbers."""
    with torch.device("meta"):
        trunk = hf.CLIPModel(hf.CLIPConfig())
    reader = two.Reader({**two.reader().known, **{f"c{i}": [100 + i] for i in range(classes)}}, [49406], [49407])
    return ImageTextModel(trunk, reader, [f"c{i}" for i in range(classes)])


@pytest.mark.parametrize(("method", "classes", "wanted"), [
    (thrifty.CoOp(), 10, 8192), (thrifty.CoOp(words="a photo of a"), 10, 2048), (thrifty.CoOp(per_class=True), 10, 81920),
    (thrifty.CoCoOp(), 10, 35360), (thrifty.KgCoOp(), 10, 2048), (thrifty.ProGrad(), 10, 8192),
    (thrifty.DeFo(), 1000, 2354152), (thrifty.MaPLe(), 10, 3555072), (thrifty.MaPLe(depth=1), 10, 395008),
    (thrifty.MaPLe(depth=3), 10, 1185024), (thrifty.MaPLe(depth=12), 10, 4740096), (thrifty.IVLP(), 10, 46080),
    (thrifty.PromptSRC(), 10, 46080)])
def test_published_counts(method: Any, classes: int, wanted: int) -> None:
    at = thrifty.attach(base(classes), method, check=False)
    assert sum(p.numel() for p in at.parameters()) == wanted


def test_two_sentences_in_one_place_are_refused() -> None:
    model = two.clip()
    put(model, thrifty.CoOp(length=3))
    for method in (thrifty.CoCoOp(), thrifty.DeFo(queries=2, length=2), thrifty.MaPLe(depth=2), thrifty.IVLP(text_depth=1)):
        with pytest.raises(HalfAdapted, match="only one of the two would be read"):
            thrifty.attach(model, method, "second")
    thrifty.attach(model, thrifty.IVLP(text_depth=0, image_depth=1), "third")


def test_refusals() -> None:
    for kind in ("vit", "bert"):
        for name in [*SMALL, "maple", "ivlp", "promptsrc"]:
            with pytest.raises(Unfit, match="does not know classes by their names"):
                thrifty.attach(tiny(kind), thrifty.methods.make(name))
    for method, setting in ((thrifty.CoOp(length=0), "length"), (thrifty.CoOp(position="back"), "position"),
                            (thrifty.KgCoOp(weight=-1.0), "weight"), (thrifty.ProGrad(temperature=0.0), "temperature"),
                            (thrifty.DeFo(scale=0.0), "scale"), (thrifty.ProGrad(length=2), "length"),
                            (thrifty.MaPLe(depth=4), "depth"), (thrifty.IVLP(text_depth=0, image_depth=0), "image_depth")):
        with pytest.raises(NoSuchSetting, match=setting):
            put(two.clip(), method)

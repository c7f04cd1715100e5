"""CLIP-Adapter, TaskRes, CLIP-LoRA and LP++: their equations, counts and invariants; the authors' numbers."""
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
from thrifty.core.errors import BadData, HalfAdapted, NoSuchSetting, ThriftyError, Unfit
from thrifty.methods.few_shot.support import Seen
from thrifty.methods.lp_plus_plus import begin, gradients, rates, solve
from thrifty.testing import tiny as stock_tiny

PIXELS = two.pictures(8)
LABELS = torch.tensor([0, 3, 1, 2, 2, 1, 0, 3])
BATCHES = [{"pixel_values": PIXELS[:5], "labels": LABELS[:5]}, {"pixel_values": PIXELS[5:], "labels": LABELS[5:]}]


def put(model: ImageTextModel, method: Any) -> Any:
    return thrifty.attach(model, method, batches=BATCHES, example={"pixel_values": PIXELS[:1]})


def edit_of(at: Any) -> Any:
    (edit,) = at.edits.values()
    return edit


def close(found: Tensor, wanted: Any, tolerance: float = 1e-5) -> None:
    wanted = torch.as_tensor(wanted, dtype=found.dtype)
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * max(1e-3, float(wanted.abs().max())))


def base(classes: int, width: int = 512) -> ImageTextModel:
    """CLIP's widths with a large picture tower, and no numbers."""
    with torch.device("meta"):
        trunk = hf.CLIPModel(hf.CLIPConfig(projection_dim=width))
    reader = two.Reader({**two.reader().known, **{f"c{i}": [100 + i] for i in range(classes)}}, [49406], [49407])
    return ImageTextModel(trunk, reader, [f"c{i}" for i in range(classes)])


# -- CLIP-Adapter ---------------------------------------------------------------------------------------------------------------
def test_the_authors_numbers_of_clip_adapter() -> None:
    model, _ = two.golden_clip()
    g = golden("vlm_clip_adapter")
    at = thrifty.attach(model, thrifty.CLIPAdapter(ratio=g["hp/ratio"]), example={"pixel_values": g["in/pixel_values"]})
    edit = edit_of(at)
    assert edit.down.weight.shape == g["w/W1"].shape and edit.up.weight.shape == g["w/W2"].shape
    with torch.no_grad():
        edit.down.weight.copy_(g["w/W1"])
        edit.up.weight.copy_(g["w/W2"])
    model.class_features = lambda: g["in/text_features"]  # of a template with words that the small reader lacks
    with at.disabled():
        close(model.image_features(g["in/pixel_values"]), g["in/image_features"])
    close(edit.adapted(g["in/image_features"]), g["out/adapter"])
    out = model(g["in/pixel_values"])["logits"]
    close(out, g["out/logits"])
    (out * g["in/probe"]).sum().backward()
    close(edit.down.weight.grad, g["grad/W1"], 5e-5)
    close(edit.up.weight.grad, g["grad/W2"], 5e-5)


@torch.no_grad()
def test_clip_adapter() -> None:
    model = two.clip()
    plain = two.logits(model)
    at = put(model, thrifty.CLIPAdapter(ratio=0.3, text_ratio=0.4))
    image, text = at.edits.values()
    with at.disabled():
        v, t = model.image_features(two.pictures()), model.class_features()

    def mixed(edit: Any, ratio: float, x: Tensor) -> Tensor:
        return ratio * (edit.up.weight @ (edit.down.weight @ x.T).clamp(min=0)).clamp(min=0).T + (1 - ratio) * x

    f, w = F.normalize(mixed(image, 0.3, v), dim=-1), F.normalize(mixed(text, 0.4, t), dim=-1)
    torch.testing.assert_close(two.logits(model), model.towers.scale() * f @ w.T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(image.adapted(3 * v), 3 * image.adapted(v))
    assert float(image.adapted(v).min()) >= 0 < float(image.adapted(v).max())
    assert model.classify(["cat", "face"]) is None and two.logits(model).shape == (3, 2)  # no class has numbers of its own
    model.classify(two.LABELS)
    for edit in (image, text):
        edit.up.weight.zero_()
    torch.testing.assert_close(two.logits(model), plain, rtol=1e-5, atol=1e-5)


# -- TaskRes --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("templates", ["a photo of a {}.", "a photo of a {}.|art of the {}."])
def test_taskres(templates: str) -> None:
    model = two.clip(templates=templates)
    plain = two.logits(model)
    raw = model.sentence_features(model.texts.templates).mean(0)
    at = put(model, thrifty.TaskRes())
    edit = edit_of(at)
    out = model(PIXELS)
    f = out["image_embeds"].detach()
    torch.testing.assert_close(out["text_embeds"], F.normalize(raw, dim=-1), rtol=1e-5, atol=1e-6)
    assert ("base" in edit.state_dict()) == ("|" in templates)
    if "|" not in templates:
        assert torch.equal(two.logits(model), plain)
    F.cross_entropy(out["logits"], LABELS).backward()
    grad = edit.x.grad
    along = (grad * raw).sum(-1) / (grad.norm(dim=-1) * raw.norm(dim=-1))
    assert float(grad.norm()) > 0 and float(along.abs().max()) < 1e-5  # the length of a class feature is taken away
    shake(at)
    with torch.no_grad():
        wanted = model.towers.scale() * f @ F.normalize(raw + 0.5 * edit.x, dim=-1).T
        torch.testing.assert_close(model(PIXELS)["logits"], wanted, rtol=1e-4, atol=1e-5)
    model.classify(["face", "leopard", "yin yang", "cat"])
    with pytest.raises(Unfit, match="has nothing for 'cat'"):
        two.logits(model)


# -- CLIP-LoRA ------------------------------------------------------------------------------------------------------------------
def test_clip_lora() -> None:
    model = two.clip()
    plain = two.logits(model)
    at = put(model, thrifty.CLIPLoRA())
    assert torch.equal(two.logits(model), plain)
    assert len(at.edits) == 2 * 3 * 3 and all(edit.scale == 1 / 2**0.5 and edit.dropout.p == 0.25 for edit in at.edits.values())
    F.cross_entropy(model(PIXELS)["logits"], LABELS).backward()
    for edit in at.edits.values():
        assert not edit.A.grad.any() and edit.B.grad.any()
    shake(at)
    before = two.logits(model)
    key, edit = next(iter(at.edits.items()))
    weight, path = edit.site.module.weight.detach().clone(), edit.site.path
    at.merge()
    delta = model.get_submodule(path).weight - weight
    torch.testing.assert_close(delta, 2**-0.5 * edit.B @ edit.A, rtol=1e-4, atol=1e-6)
    assert int(torch.linalg.matrix_rank(delta.double(), tol=1e-4)) == 2
    torch.testing.assert_close(two.logits(model), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("encoder", "moved"), [("vision", "image_embeds"), ("text", "text_embeds")])
def test_clip_lora_in_one_tower_leaves_the_other(encoder: str, moved: str) -> None:
    model = two.clip()
    with torch.no_grad():
        before = model(PIXELS)
    shake(at := put(model, thrifty.CLIPLoRA(encoder=encoder)))
    assert len(at.edits) == 9
    with torch.no_grad():
        after = model(PIXELS)
    for name in ("image_embeds", "text_embeds"):
        assert torch.equal(before[name], after[name]) == (name != moved)


def test_clip_lora_on_siglip() -> None:
    model = two.siglip()
    assert len(put(model, thrifty.CLIPLoRA()).edits) == 18  # and none in the pooling of either tower


@pytest.mark.timm
def test_all_of_them_on_open_clip() -> None:
    trunk = stock_tiny.make("open_clip").fresh()
    tokenizer: Any = type("Tokenizer", (), {"sot_token_id": 62, "eot_token_id": 63, "encode": lambda self, text: two.reader()(
        text, add_special_tokens=False)["input_ids"]})()
    pixels = two.pictures(8, side=32)
    for name, edits in (("clip-lora", 12), ("clip-adapter", 1), ("taskres", 1), ("lp++", 1), ("tip-adapter-f", 1), ("ape-t", 1)):
        model = ImageTextModel(trunk, tokenizer, two.LABELS).eval()
        at = thrifty.attach(model, thrifty.methods.make(name), batches=[{"pixel_values": pixels, "labels": LABELS}])
        assert len(at.edits) == edits
        before = two.logits(model, pixels)
        shake(at)
        assert not torch.equal(two.logits(model, pixels), before)
        at.detach()


# -- LP++ -----------------------------------------------------------------------------------------------------------------------
def cloud(rows: int = 40, classes: int = 4, width: int = 6, seed: int = 0) -> Seen:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    centres = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    raw = centres[labels] + torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return Seen(raw, labels, F.normalize(centres + torch.randn(classes, width, generator=generator, dtype=torch.float64), dim=-1))


def test_lp_plus_plus_is_the_authors_loop() -> None:
    seen = cloud()
    f, t = F.normalize(seen.raw, dim=-1), seen.classes
    told = F.one_hot(seen.labels, 4).double()
    w, a = begin(seen, 250.0)
    torch.testing.assert_close(w, told.T @ f)
    torch.testing.assert_close(a, torch.full((4,), 250.0 * float(torch.stack([(f @ t.T)[seen.labels == k, k].mean()
                                                                              for k in range(4)]).mean()), dtype=torch.float64))
    rate, rate_a = rates(seen)
    assert rate == pytest.approx(4 * 40 / float(torch.linalg.eigvalsh(f.T @ f).max()))
    assert rate_a == pytest.approx(40 / (4 * max(float((f @ t[k]).square().sum()) for k in range(4))))
    assert 4 * 40 / rate <= 40  # the largest eigenvalue is at most the number of rows
    b = torch.linspace(-0.3, 0.3, 4, dtype=torch.float64)
    path: list[Any] = []
    solve(seen, (w, b, a), 35, "code", lambda *now: path.append([x.clone() if isinstance(x, Tensor) else x for x in now]))
    probe = torch.nn.Linear(6, 4).double()
    with torch.no_grad():
        probe.weight.copy_(w)
        probe.bias.copy_(b)
    alpha = a.clone().requires_grad_(True)
    optimiser = torch.optim.SGD(probe.parameters(), lr=rate, momentum=0.9)
    for epoch in range(35):
        optimiser.zero_grad()
        F.cross_entropy(probe(f) + alpha * (f @ t.T), seen.labels).backward()  # alpha's gradient is never zeroed
        optimiser.step()
        if (epoch + 1) % 10 == 0:
            alpha.data -= rate_a * alpha.grad
        assert path[epoch][0] == epoch + 1
        for found, wanted in zip(path[epoch][1:], (probe.weight, probe.bias, alpha), strict=True):
            torch.testing.assert_close(found, wanted.detach(), rtol=1e-8, atol=1e-8)


def test_lp_plus_plus_of_the_paper_never_goes_up() -> None:
    seen = cloud(seed=3)
    losses: list[float] = []

    def loss(w: Tensor, b: Tensor, a: Tensor) -> Tensor:
        return F.cross_entropy(seen.unit @ w.T + b + a * (seen.unit @ seen.classes.T), seen.labels)

    values = [x.requires_grad_(True) for x in (torch.randn(4, 6, dtype=torch.float64), torch.zeros(4, dtype=torch.float64),
                                               torch.full((4,), 2.0, dtype=torch.float64))]
    for found, wanted in zip(gradients(seen, *values), torch.autograd.grad(loss(*values), values), strict=True):
        torch.testing.assert_close(found.detach(), wanted)
    solve(seen, tuple(values), 200, "paper", lambda _, *now: losses.append(float(loss(*now))))  # type: ignore[arg-type]
    assert all(after <= before + 1e-12 for before, after in zip(losses, losses[1:], strict=False)) and losses[-1] < 0.8 * losses[0]
    turned = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    other = Seen(seen.raw[turned], seen.labels[turned], seen.classes)
    ends: list[Any] = []
    for one in (seen, other):
        solve(one, tuple(values), 5, "code", lambda epoch, *now: ends.append(now) if epoch == 5 else None)  # type: ignore[arg-type]
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b)


def test_lp_plus_plus_on_a_model() -> None:
    model = two.clip()
    plain = two.logits(model)
    at = put(model, thrifty.LPPlusPlus(views=0))
    edit = edit_of(at)
    with torch.no_grad():
        out = model(PIXELS)
        f, t = out["image_embeds"], out["text_embeds"]
        torch.testing.assert_close(out["logits"], f @ edit.weight.T + edit.bias + edit.alpha * (f @ t.T), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(edit.weight, F.one_hot(LABELS).float().T @ f, rtol=1e-5, atol=1e-6)
    assert float(edit.bias.abs().max()) <= 32**-0.5
    start = [edit.weight.clone(), edit.bias.clone(), edit.alpha.clone()]
    with torch.no_grad():
        edit.weight.zero_()
        edit.bias.zero_()
        edit.alpha.fill_(3.0)
    torch.testing.assert_close(two.logits(model) / 3, plain / model.towers.scale(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for parameter, value in zip((edit.weight, edit.bias, edit.alpha), start, strict=True):
            parameter.copy_(value)
    at.method.calibrate(at, None, iter(BATCHES))
    measured = at.about["measured"]
    right = int((model(PIXELS)["logits"].argmax(-1) == LABELS).sum())
    assert measured["validation accuracy"] == right / 8 and 1 <= measured["epoch"] <= 300
    assert at.memory
    at.method.finish(at)
    assert not at.memory


# -- all of them ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("method", "classes", "width", "wanted"), [
    (thrifty.CLIPAdapter(), 5, 512, 131_072), (thrifty.CLIPAdapter(), 5, 1024, 524_288), (thrifty.TaskRes(), 100, 512, 51_200),
    (thrifty.CLIPLoRA(), 5, 512, 184_320), (thrifty.CLIPLoRA(encoder="vision"), 5, 512, 110_592),
    (thrifty.CLIPLoRA(encoder="text"), 5, 512, 73_728)])
def test_published_counts(method: Any, classes: int, width: int, wanted: int) -> None:
    at = thrifty.attach(base(classes, width), method, check=False)
    assert sum(p.numel() for p in at.parameters()) == wanted


def test_refusals() -> None:
    for name in ("clip-adapter", "taskres", "clip-lora", "lp++", "tip-adapter"):
        with pytest.raises(Unfit, match="does not know classes by their names"):
            thrifty.attach(tiny("vit"), thrifty.methods.make(name), batches=BATCHES)
    for method, setting in ((thrifty.CLIPAdapter(ratio=1.5), "ratio"), (thrifty.CLIPAdapter(ratio=0.0), "ratio"),
                            (thrifty.CLIPAdapter(reduction=64), "reduction"), (thrifty.TaskRes(alpha=0.0), "alpha"),
                            (thrifty.CLIPLoRA(encoder="image"), "encoder"), (thrifty.CLIPLoRA(rank=0), "rank"),
                            (thrifty.CLIPLoRA(where="head"), "head"), (thrifty.LPPlusPlus(steps=0), "steps"),
                            (thrifty.LPPlusPlus(variant="both"), "variant")):
        with pytest.raises(ThriftyError, match=setting):
            put(two.clip(), method)
    with pytest.raises(NoSuchSetting, match="ratio"):
        thrifty.methods.make("clip-adapter", ration=0.1)
    with pytest.raises(ThriftyError, match="attach with batches="):
        thrifty.attach(two.clip(), thrifty.LPPlusPlus())
    with pytest.raises(BadData, match=r"the class 'yin yang' has no picture among the 2 .*\(2 such\)"):
        thrifty.attach(two.clip(), thrifty.LPPlusPlus(), batches=[{"pixel_values": PIXELS[:2], "labels": torch.tensor([0, 1])}])
    for labels in (torch.tensor([0, 4]), torch.tensor([0.0, 1.0]), None):
        with pytest.raises(ThriftyError, match="class numbers from 0 to 3"):
            thrifty.attach(two.clip(), thrifty.LPPlusPlus(), batches=[{"pixel_values": PIXELS[:2], "labels": labels}])
    model = two.clip()
    put(model, thrifty.LPPlusPlus())
    with pytest.raises(HalfAdapted, match="scores of its own"):
        thrifty.attach(model, thrifty.TipAdapter(), "second", batches=BATCHES)
    thrifty.attach(model, thrifty.CLIPAdapter(), "third")  # acts elsewhere

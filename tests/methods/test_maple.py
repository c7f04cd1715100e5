"""MaPLe, IVLP and PromptSRC: their equations and invariants, and the authors' numbers."""
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import two_towers as two
from backbones import golden, shake
from test_coop import BATCH, LABELS, close, loss_of, put
from torch import Tensor

import thrifty
from thrifty.clip import LISTS, ImageTextModel
from thrifty.methods.prompts.context import arrange


def test_the_authors_numbers() -> None:
    model, _ = two.golden_clip()
    g = golden("vlm_maple_depth1")
    at = thrifty.attach(model, thrifty.MaPLe(depth=1, length=2), example={"pixel_values": g["in/pixel_values"]})
    shared = at.context.shared
    with torch.no_grad():
        assert torch.equal(shared.P[0], model.text.embed(torch.tensor(model.reader.tokens("a photo"))))
        shared.P[0].copy_(g["w/ctx"])
        shared.F[0].weight.copy_(g["w/proj_weight"])
        shared.F[0].bias.copy_(g["w/proj_bias"])
    out = model(g["in/pixel_values"])["logits"]
    close(out, g["out/logits"])
    (out * g["in/probe"]).sum().backward()
    close(shared.P[0].grad, g["grad/ctx"], 5e-5)
    close(shared.F[0].weight.grad, g["grad/proj_weight"], 5e-5)


def by_hand(model: ImageTextModel, text: list[Tensor], image: list[Tensor], kept: list[int], pixels: Tensor) -> Tensor:
    """Both towers block by block, with the tokens ``text`` and ``image`` of each depth."""
    trunk: Any = model.towers.trunk
    n = len(text[0])
    ids, slots, ends = arrange(model.texts, n, "end", kept)
    x = torch.where(slots[..., None] >= 0, text[0][slots.clamp(min=0)], model.text.embed(ids))
    h = x + trunk.text_model.embeddings.position_embedding.weight[: x.shape[1]]
    mask = torch.full((h.shape[1], h.shape[1]), -torch.inf).triu(1)[None, None]
    for j, block in enumerate(trunk.text_model.encoder.layers):
        if 0 < j < len(text):
            h = torch.cat([h[:, :1], text[j].expand(len(h), -1, -1), h[:, 1 + n :]], 1)
        h = block(h, mask)
    t = trunk.text_projection(trunk.text_model.final_layer_norm(h)[torch.arange(len(h)), ends])
    v = trunk.vision_model.embeddings(pixels)
    for j, block in enumerate(trunk.vision_model.encoder.layers):
        if j < len(image):
            tokens = image[j].expand(len(v), -1, -1)
            v = torch.cat([v if j == 0 else v[:, : -tokens.shape[1]], tokens], 1)
            v = trunk.vision_model.pre_layrnorm(v) if j == 0 else v
        elif j == 0:
            v = trunk.vision_model.pre_layrnorm(v)
        v = block(v, None)
    f = trunk.visual_projection(trunk.vision_model.post_layernorm(v[:, 0]))
    return trunk.logit_scale.exp() * F.normalize(f, dim=-1) @ F.normalize(t, dim=-1).T


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_maple_by_hand(depth: int) -> None:
    model = two.clip()
    shake(at := put(model, thrifty.MaPLe(depth=depth)))
    shared, found = at.context.shared, two.logits(model)
    text = [p.detach() for p in shared.P]
    image = [f(p).detach() for f, p in zip(shared.F, shared.P, strict=True)]
    with torch.no_grad(), at.disabled():
        wanted = by_hand(model, text, image, model.reader.tokens("of a"), two.pictures())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    at.method.finish(at)
    torch.testing.assert_close(two.logits(model), found, rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in at.parameters()) == 2 * depth * (16 + 24)
    assert not any(key.startswith("shared") for key in at.state())


def test_deeper_maps_start_as_copies_of_one() -> None:
    shared = put(two.clip(), thrifty.MaPLe(depth=3)).context.shared
    assert torch.equal(shared.F[1].weight, shared.F[2].weight) and not torch.equal(shared.F[0].weight, shared.F[1].weight)
    assert shared.F[1].weight.data_ptr() != shared.F[2].weight.data_ptr()


def test_without_maps_gradients_come_through_the_text_alone() -> None:
    grads = []
    for cut in (False, True):
        model = two.clip()
        at = put(model, thrifty.MaPLe(depth=2))
        shared = at.context.shared
        with torch.no_grad():
            for layer in shared.F if cut else ():
                layer.weight.zero_()
        loss_of(at, model).backward()
        grads.append([p.grad.clone() for p in shared.P])
    assert all(g.abs().max() > 0 for both in grads for g in both)
    model = two.clip()
    at = put(model, thrifty.IVLP(text_length=2, image_length=2, text_depth=2, image_depth=2))
    edits = list(at.edits.values())
    twin = put(two.clip(), thrifty.MaPLe(depth=2)).context.shared
    with torch.no_grad():  # independent tokens at the values of coupled ones: the chain rule by hand
        for tokens, value in zip([edits[0].ctx, edits[1].P, edits[2].Q, edits[3].Q],
                                 [*twin.P, *(f(p) for f, p in zip(twin.F, twin.P, strict=True))], strict=True):
            tokens.copy_(value)
    loss_of(at, model).backward()
    for own, q, f, whole in zip([edits[0].ctx, edits[1].P], edits[2:], twin.F, grads[0], strict=True):
        torch.testing.assert_close(own.grad + q.Q.grad @ f.weight, whole, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_tokens_that_nobody_attends_to_leave_the_picture_as_it_was() -> None:
    model = two.clip()
    plain = model.image_features(two.pictures())
    shake(put(model, thrifty.IVLP(text_depth=0, image_depth=2, image_length=3)))
    assert not torch.allclose(model.image_features(two.pictures()), plain)

    def hide(module: Any, args: Any, kwargs: Any) -> Any:
        mask = torch.zeros(1, 1, 1, args[0].shape[1])
        mask[..., -3:] = -torch.inf
        return (args[0], mask), kwargs

    trunk: Any = model.towers.trunk
    for block in trunk.vision_model.encoder.layers:
        block.register_forward_pre_hook(hide, with_kwargs=True)
    torch.testing.assert_close(model.image_features(two.pictures()), plain, rtol=1e-5, atol=1e-5)


def test_ivlp_by_hand() -> None:
    model = two.clip()
    shake(at := put(model, thrifty.IVLP(text_length=4, image_length=3, text_depth=3, image_depth=2)))
    context, *others = at.edits.values()
    text = [context.ctx.detach(), *(e.P.detach() for e in others[:2])]
    image = [e.Q.detach() for e in others[2:]]
    found = two.logits(model)
    with torch.no_grad(), at.disabled():
        torch.testing.assert_close(found, by_hand(model, text, image, [], two.pictures()), rtol=1e-4, atol=1e-4)
    only = two.clip()
    calls: list[int] = []
    put(only, thrifty.IVLP(text_depth=0, image_depth=2))
    only.text.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        only(two.pictures())["logits"].sum().backward()
    assert len(calls) <= 1, "sentences that nothing changes are read once"


@pytest.mark.parametrize("method", [thrifty.MaPLe(depth=2), thrifty.IVLP(text_depth=2, image_depth=2)], ids=["maple", "ivlp"])
def test_towers_without_a_begin_or_an_entry_norm(method: Any) -> None:
    model = two.siglip()
    before = two.logits(model)
    shake(at := put(model, method))
    assert two.logits(model).shape == before.shape and not torch.allclose(two.logits(model), before)
    loss_of(at, model).backward()
    assert all(p.grad is not None and p.grad.any() for p in at.parameters())


def test_promptsrc_by_hand() -> None:
    model = two.clip()
    with torch.no_grad():
        plain = model(**BATCH)
    names = "a photo of a {}.|art of the {}.|the bad {}."
    at = put(model, thrifty.PromptSRC(text_depth=2, image_depth=2, templates=names))
    with torch.no_grad(), at.disabled():
        teacher = F.normalize(sum(two.clip(templates=[t]).class_features() for t in names.split("|")) / 3, dim=-1)
    out, s = model(**BATCH), model.towers.scale()
    z, zz = out["logits"], s * plain["image_embeds"] @ teacher.T
    p, pz = z.softmax(-1), zz.softmax(-1)
    apart = (pz * (pz.log() - p.log())).sum() / z.numel()
    wanted = F.cross_entropy(z, LABELS) + 25 * (out["text_embeds"] - teacher).abs().mean() \
        + 10 * (out["image_embeds"] - plain["image_embeds"]).abs().mean() + apart
    torch.testing.assert_close(loss_of(at, model), wanted, rtol=1e-4, atol=1e-4)
    assert float(apart) >= 0
    alone = put(two.clip(), thrifty.PromptSRC(text_depth=2, image_depth=2, text=0.0, image=0.0, logits=0.0, templates=names))
    torch.testing.assert_close(loss_of(alone, alone.model), F.cross_entropy(alone.model(**BATCH)["logits"], LABELS))
    assert len(LISTS["clip-60"]) == 60


def test_promptsrc_averages_its_own_states() -> None:
    method = thrifty.PromptSRC(text_depth=1, image_depth=1, snapshots=4, centre=3.0, spread=1.0)
    at = put(two.clip(), method)
    parameter, seen = at.parameters()[0], []
    for step in range(1, 9):
        with torch.no_grad():
            parameter.add_(0.1 * step)
        if step % 2 == 0:
            seen.append(parameter.detach().clone())
        assert not method.settled(at)
        method.step(at, step, 8)
    weights = [math.exp(-((e - 3) ** 2) / 2) for e in (1, 2, 3, 4)]
    wanted = sum(w / sum(weights) * state for w, state in zip(weights, seen, strict=True))
    torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-5, atol=1e-6)
    assert method.settled(at)
    assert sum(method.weights(20)) == pytest.approx(1) and thrifty.PromptSRC().weights(1) == [1.0]
    assert thrifty.PromptSRC(snapshots=5, centre=5.0, spread=1e-3).weights(5) == [0, 0, 0, 0, 1]

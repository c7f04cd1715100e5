"""EXPRES: published counts, its equations recomputed row by row, and what its tokens are at the start."""
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from backbones import count, frozen_stay, published, run, shake, tiny
from torch import Tensor

import thrifty
from thrifty.core.attending import Attending
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.methods import make
from thrifty.methods.expres import TokenResidual
from thrifty.methods.features.feature_head import head_of
from thrifty.methods.prompts.tokens import Tokens

IMAGES = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
EVERY = "ln1|q|k|v|o|ln2|fc1|fc2"


def tokens(at: thrifty.Attachment) -> Tokens:
    return next(e for e in at.edits.values() if isinstance(e, Tokens))


def residuals(at: thrifty.Attachment) -> dict[str, TokenResidual]:
    return {e.site.path: e for e in at.edits.values() if isinstance(e, TokenResidual)}


def by_hand(model: Any, prompt: Tensor, added: dict[str, Tensor], images: Tensor, keep: bool = True) -> Tensor:
    """What the learned tokens [batch, length, d] become behind the last normalisation."""
    x, front, length = model.vit.embeddings(images), int(keep), len(prompt)
    x = torch.cat([x[:, :front], prompt.expand(len(x), -1, -1), x[:, 1:]], 1)

    def at(layer: int, name: str, y: Tensor) -> Tensor:
        delta = added.get(f"vit.layers.{layer}.{name}")
        return y if delta is None else y + F.pad(delta, (0, 0, front, y.shape[1] - front - length))

    for i, layer in enumerate(model.vit.layers):
        own, parts = layer.attention, []
        u = at(i, "layernorm_before", layer.layernorm_before(x))
        for name in ("q", "k", "v"):
            y = at(i, f"attention.{name}_proj", getattr(own, f"{name}_proj")(u))
            parts.append(y.unflatten(-1, (own.num_attention_heads, -1)).transpose(1, 2))
        q, k, v = parts
        a = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        x = x + at(i, "attention.o_proj", own.o_proj(a.transpose(1, 2).flatten(2)))
        h = at(i, "mlp.fc1", layer.mlp.fc1(at(i, "layernorm_after", layer.layernorm_after(x))))
        x = x + at(i, "mlp.fc2", layer.mlp.fc2(layer.mlp.activation_fn(h)))
    return model.vit.layernorm(x)[:, front : front + length]


@pytest.mark.parametrize(("length", "sites", "numbers"), [(1, "ln1|q|k|v|o", 46_848), (10, "ln1|q|k|v|o", 468_480),
                                                          (10, "q", 10 * 768 * 13), (1, "fc1", 768 + 12 * 4 * 768)])
def test_counts(length: int, sites: str, numbers: int) -> None:
    assert count(thrifty.attach(published("vit-b16"), thrifty.EXPRES(length=length, sites=sites))) == numbers


@pytest.mark.parametrize("settings", [{}, {"sites": EVERY}, {"sites": EVERY, "keep_cls": False}, {"where": "block[1:2]"}])
def test_by_hand(settings: dict[str, Any]) -> None:
    model = tiny("vit").double()
    at = thrifty.attach(model, make("expres", length=3, **settings))
    start = tokens(at).prompt.detach().clone()
    assert all(not e.residual.any() for e in residuals(at).values())
    untouched = run(model, pixel_values=IMAGES)
    shake(at)
    added = {path: e.residual.detach() for path, e in residuals(at).items()}
    assert len(added) == len(settings.get("sites", "ln1|q|k|v|o").split("|")) * (1 if "where" in settings else 2)
    y, prompt, keep = run(model, pixel_values=IMAGES), tokens(at).prompt.detach(), settings.get("keep_cls", True)
    at.disable()
    torch.testing.assert_close(y, model.classifier(by_hand(model, prompt, added, IMAGES, keep).mean(1)))
    torch.testing.assert_close(untouched, model.classifier(by_hand(model, start, {}, IMAGES, keep).mean(1)))


def test_the_tokens_start_as_the_class_token() -> None:
    model = tiny("vit")
    own = (model.vit.embeddings.cls_token + model.vit.embeddings.position_embeddings[:, :1])[0, 0]
    at = thrifty.attach(model, thrifty.EXPRES(length=20, noise=0.05))
    noise = tokens(at).prompt - own
    assert 0.045 < float(noise.abs().max()) <= 0.05 + 1e-6
    at.detach()
    torch.testing.assert_close(tokens(thrifty.attach(model, thrifty.EXPRES(noise=0.0))).prompt, own.expand(10, -1))


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_one_token_that_nobody_sees_answers_as_the_class_token(kind: str) -> None:
    model = tiny(kind).double()
    base = run(model, pixel_values=IMAGES)
    thrifty.attach(model, thrifty.EXPRES(length=1, noise=0.0))
    assert not torch.allclose(run(model, pixel_values=IMAGES), base)  # the softmax sees one token twice

    def blind(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return q, torch.cat([k[:, :, :1], k[:, :, 2:]], 2), torch.cat([v[:, :, :1], v[:, :, 2:]], 2)

    with Attending(blind):
        torch.testing.assert_close(run(model, pixel_values=IMAGES), base)


def test_residuals_on_keys_act_through_the_tokens_keys_alone() -> None:
    model = tiny("vit")
    at = thrifty.attach(model, thrifty.EXPRES(length=2))
    shake(at)

    def blind(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return q, torch.cat([k[:, :, :1], k[:, :, 3:]], 2), torch.cat([v[:, :, :1], v[:, :, 3:]], 2)

    keys = [e for path, e in residuals(at).items() if path.endswith("k_proj")]
    with Attending(blind):
        run(model).sum().backward()
    assert len(keys) == 2 and not any(e.residual.grad.any() for e in keys)
    run(model).sum().backward()
    assert all(e.residual.grad.any() for e in keys)


def test_patches_enter_as_they_were() -> None:
    model, seen = tiny("vit"), []
    model.vit.layers[0].layernorm_before.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    run(model)
    shake(thrifty.attach(model, thrifty.EXPRES(length=3)))
    run(model)
    assert torch.equal(seen[-1][:, [0, 4, 5, 6, 7]], seen[0])


def test_concatenated(tmp_path: Any) -> None:
    model = tiny("vit").double()
    at = thrifty.attach(model, thrifty.EXPRES(length=3, pool="concat"), also_train="head")
    shake(at)
    y, head, prompt = run(model, pixel_values=IMAGES), head_of(at).linear, tokens(at).prompt.detach()
    added = {path: e.residual.detach() for path, e in residuals(at).items()}
    at.save(tmp_path / "tokens")
    fresh = tiny("vit").double()
    thrifty.load(fresh, tmp_path / "tokens")
    assert torch.equal(run(fresh, pixel_values=IMAGES), y)
    at.disable()
    wanted = F.linear(by_hand(model, prompt, added, IMAGES).flatten(1), head.weight, head.bias)
    torch.testing.assert_close(y, wanted)


@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2"])
def test_trains_and_leaves(kind: str) -> None:
    model = tiny(kind)
    base = run(model)
    at = thrifty.attach(model, thrifty.EXPRES(length=2))
    assert len(frozen_stay(model, at)) == 1 + 2 * 5
    at.detach()
    assert torch.equal(run(model.eval()), base)


def test_refusals() -> None:
    for kind, why in (("swin", "stages"), ("resnet", "patches"), ("beit", "bias")):
        with pytest.raises(Unfit, match=why):
            thrifty.attach(tiny(kind), thrifty.EXPRES())
    with pytest.raises(Unfit, match="head"):
        thrifty.attach(hf.ViTModel(tiny("vit").config), thrifty.EXPRES(pool="concat"))
    for setting, value in (("length", 0), ("sites", "q|w"), ("sites", "q|q"), ("noise", -1.0), ("dropout", 1.0), ("pool", "max")):
        with pytest.raises(NoSuchSetting, match=setting):
            thrifty.attach(tiny("vit"), make("expres", **{setting: value}))


@pytest.mark.timm
def test_timm() -> None:
    timm = pytest.importorskip("timm")
    sizes = {"depth": 2, "embed_dim": 16, "num_heads": 2, "img_size": 32, "num_classes": 3}
    model = timm.create_model("vit_tiny_patch16_224", **sizes).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    base = model(x)
    at = thrifty.attach(model, thrifty.EXPRES(length=2))
    assert len(residuals(at)) == 2 * 3 and sum(isinstance(e, TokenResidual) for e in at.edits.values()) == 2 * 5  # q, k, v are one
    shake(at)
    assert model(x).shape == base.shape and not torch.allclose(model(x), base)
    with pytest.raises(Unfit, match="class token"):
        thrifty.attach(timm.create_model("vit_tiny_patch16_224", global_pool="avg", **sizes), thrifty.EXPRES())

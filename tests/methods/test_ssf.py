"""SSF: published counts, what its equation promises, and exact merging."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from backbones import count, frozen_stay, published, run, shake, tiny

import thrifty
from thrifty.core.errors import CannotMerge, NoSuchSetting, Unfit
from thrifty.testing import tiny as families


def test_counts() -> None:
    at = thrifty.attach(published("vit-b16"), thrifty.SSF())
    assert count(at) == 205_824
    per_block = 2 * (768 + 3 * 768 + 768 + 768 + 4 * 768 + 768)
    assert sum(sum(p.numel() for p in e.parameters()) for e in at.edits.values() if ".layers.0." in f".{e.site.path}.") == per_block
    stages = list(zip((2, 2, 18, 2), (128, 256, 512, 1024), strict=True))
    trunk = sum(n * 11 * d for n, d in stages) + sum(4 * d + 2 * d for _, d in stages[:3]) + 2 * 128 + 1024
    assert count(thrifty.attach(published("swin-b"), thrifty.SSF())) == 2 * trunk


def test_start() -> None:
    at = thrifty.attach(tiny("vit", hidden_size=64, intermediate_size=256), thrifty.SSF())
    gamma, beta = (torch.cat([getattr(e, n) for e in at.edits.values()]) for n in ("gamma", "beta"))
    assert float(gamma.mean()) == pytest.approx(1, abs=0.002) and float(beta.mean()) == pytest.approx(0, abs=0.002)
    assert float(gamma.std()) == pytest.approx(0.02, rel=0.1) and float(beta.std()) == pytest.approx(0.02, rel=0.1)
    groups = at.method.groups(at, 1e-3, 0.1)
    assert [g["weight_decay"] for g in groups] == [0.0]


@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2", "swin", "beit", "convnext", "resnet"])
def test_ones_and_zeros_are_the_base_and_every_value_counts(kind: str) -> None:
    model = tiny(kind).double()
    images = torch.randn(2, 3, 32, 32).double() if kind in ("swin", "resnet", "convnext") else torch.randn(2, 3, 16, 16).double()
    base = run(model, pixel_values=images)
    at = thrifty.attach(model, thrifty.SSF())
    moved = run(model, pixel_values=images)
    assert not torch.allclose(moved, base)
    with torch.no_grad():
        for e in at.edits.values():
            e.gamma.fill_(1)
            e.beta.fill_(0)
    torch.testing.assert_close(run(model, pixel_values=images), base)
    shake(at, 0.1)
    run(model, pixel_values=images).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in at.parameters())


def test_by_hand() -> None:
    model = tiny("vit", num_hidden_layers=1).double()
    images = torch.randn(2, 3, 16, 16).double()
    at = thrifty.attach(model, thrifty.SSF())
    shake(at)
    y = run(model, pixel_values=images)
    e = {k.partition("#")[0].removeprefix("vit."): e for k, e in at.edits.items()}
    at.disable()
    t = lambda name, z: e[name].gamma * z + e[name].beta  # noqa: E731
    block, embed = model.vit.layers[0], model.vit.embeddings
    patches = embed.patch_embeddings.projection(images).flatten(2).transpose(1, 2)
    x = torch.cat([embed.cls_token.expand(2, -1, -1), t("embeddings.patch_embeddings.projection", patches)], 1)
    x = x + embed.position_embeddings
    u = t("layers.0.layernorm_before", block.layernorm_before(x))
    projected = [t(f"layers.0.attention.{n}_proj", block.attention.get_submodule(f"{n}_proj")(u)) for n in "qkv"]
    q, k, v = (z.unflatten(-1, (2, 8)).transpose(1, 2) for z in projected)
    a = ((q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    x = x + t("layers.0.attention.o_proj", block.attention.o_proj(a))
    u = t("layers.0.layernorm_after", block.layernorm_after(x))
    hidden = torch.nn.functional.gelu(t("layers.0.mlp.fc1", block.mlp.fc1(u)))
    x = x + t("layers.0.mlp.fc2", block.mlp.fc2(hidden))
    torch.testing.assert_close(y, model.classifier(t("layernorm", model.vit.layernorm(x))[:, 0]))


def test_the_gradient_of_a_shift_is_a_sum_over_tokens() -> None:
    model = tiny("vit").double()
    at = thrifty.attach(model, thrifty.SSF())
    e: Any = at.edits["vit.layers.0.layernorm_before#scale-shift"]
    upstream: list[torch.Tensor] = []

    def listen(module: Any, given: Any, y: torch.Tensor) -> None:
        y.register_hook(upstream.append)

    e.register_forward_hook(listen)
    run(model, pixel_values=torch.randn(2, 3, 16, 16).double()).square().sum().backward()
    torch.testing.assert_close(e.beta.grad, upstream[0].sum((0, 1)))


@pytest.mark.parametrize(("kind", "settings"), [
    ("vit", {}), ("deit", {}), ("dinov2", {}), ("bert", {}), ("swin", {"where": "patch|norm|attn.?|mlp.*"}),
    ("swin", {"shift": False}), ("resnet", {"where": "norm"}), ("convnext", {}),
    ("llama", {"where": "attn.?|mlp.*", "shift": False})])
def test_merges_exactly(kind: str, settings: dict[str, Any]) -> None:
    model = tiny(kind)
    base, keys = run(model), list(model.state_dict())
    at = thrifty.attach(model, thrifty.SSF(**settings))
    shake(at, 0.1)
    y = run(model)
    assert not torch.allclose(y, base)
    at.merge()
    torch.testing.assert_close(run(model), y, atol=1e-5, rtol=1e-4)
    assert list(model.state_dict()) == keys
    at.detach()
    torch.testing.assert_close(run(model), base)


@pytest.mark.parametrize(("kind", "said"), [("swin", "reduction' has no bias"), ("resnet", "has no bias")])
def test_a_shift_needs_a_bias_to_merge_into(kind: str, said: str) -> None:
    model = tiny(kind)
    at = thrifty.attach(model, thrifty.SSF())
    y = run(model)
    with pytest.raises(CannotMerge, match=said):
        at.merge()
    assert torch.equal(run(model), y)
    with pytest.raises(CannotMerge, match="how 'model.*LlamaRMSNorm.* is not known"):
        thrifty.attach(tiny("llama"), thrifty.SSF(where="norm", shift=False)).merge()


def test_channels_are_found_by_what_a_module_is_not_by_its_size() -> None:
    model = tiny("convnext", hidden_sizes=[8, 8])  # 32 pixels in patches of 4: maps of 8 × 8 with 8 channels
    at = thrifty.attach(model, thrifty.SSF())
    axes = {key.partition("#")[0].removeprefix("convnext."): e.axis for key, e in at.edits.items()}
    assert axes["embeddings.patch_embeddings"] == axes["embeddings.layernorm"] == 1
    assert axes["encoder.stages.0.layers.0.dwconv"] == 1 and axes["encoder.stages.0.layers.0.layernorm"] == -1
    y = torch.randn(2, 8, 8, 8)
    e: Any = at.edits["convnext.embeddings.layernorm#scale-shift"]
    torch.testing.assert_close(e(y, y), e.gamma[:, None, None] * y + e.beta[:, None, None])


def test_trains_and_leaves() -> None:
    model = tiny("swin")
    base = run(model)
    at = thrifty.attach(model, thrifty.SSF())
    assert all("edits" in n.split(".") for n in frozen_stay(model, at))
    at.detach()
    torch.testing.assert_close(run(model), base)


@pytest.mark.timm
@pytest.mark.parametrize("kind", ["timm_vit", "timm_swin", "timm_resnet", "timm_convnext"])
def test_timm(kind: str) -> None:
    backbone = families.make(kind)
    model = backbone.fresh()
    at = thrifty.attach(model, thrifty.SSF(shift=False), example=backbone.example)
    shake(at, 0.1)
    y = backbone.output(model)
    at.merge()
    torch.testing.assert_close(backbone.output(model), y, atol=1e-4, rtol=1e-4)


def test_refusals() -> None:
    with pytest.raises(NoSuchSetting, match="std"):
        thrifty.attach(tiny("vit"), thrifty.SSF(std=-1.0))
    with pytest.raises(Unfit, match="no operation"):
        thrifty.attach(torch.nn.Sequential(torch.nn.Embedding(4, 4)), thrifty.SSF())

"""AdaptFormer: published counts, its place in the stream recomputed by hand, and its invariants."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from backbones import count, frozen_stay, published, run, shake, tiny
from torch import Tensor

import thrifty
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.methods.adaptformer import BesideNetwork
from thrifty.testing import tiny as families

NORMS = {"vit": ("layernorm_before", "layernorm_after"), "deit": ("layernorm_before", "layernorm_after"),
         "dinov2": ("norm1", "norm2"), "swin": ("layernorm_before", "layernorm_after")}


def adapters(at: thrifty.Attachment) -> list[Any]:
    return [e for e in at.edits.values() if isinstance(e, BesideNetwork)]


def bottleneck(e: Any, u: Tensor) -> Tensor:
    return e.scale * (torch.relu(u @ e.down.weight.T + e.down.bias) @ e.up.weight.T + e.up.bias)


def test_counts() -> None:
    for rank, wanted in ((64, 1_189_632), (16, 304_320), (8, 156_768)):
        assert count(thrifty.attach(published("vit-b16"), thrifty.AdaptFormer(rank=rank))) == wanted
    stages = zip((2, 2, 18, 2), (128, 256, 512, 1024), strict=True)
    at = thrifty.attach(published("swin-b"), thrifty.AdaptFormer())
    assert count(at) == sum(n * (2 * d * 64 + 64 + d) for n, d in stages)


def block_inputs(model: Any, at: thrifty.Attachment, norm: str) -> list[tuple[Any, Tensor, Tensor, Tensor]]:
    """For each block: itself, what it is given, what its second norm reads, and what it gives, on the model as it now is."""
    found: list[tuple[Any, Tensor, Tensor, Tensor]] = []
    handles = []
    for site in thrifty.sites(model, "block"):
        seen: list[Tensor] = []
        handles.append(site.module.get_submodule(norm).register_forward_pre_hook(lambda m, a, seen=seen: seen.append(a[0])))
        handles.append(site.module.register_forward_hook(
            lambda m, a, y, seen=seen: found.append((m, a[0], seen.pop(), y if isinstance(y, Tensor) else y[0]))))
    run_double(model)
    for handle in handles:
        handle.remove()
    return found


def run_double(model: Any) -> Tensor:
    side = model.config.image_size
    return run(model, pixel_values=torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(5)).double())


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("kind", list(NORMS))
def test_it_stands_beside_the_network_and_reads_the_stream(kind: str, pre_norm: bool) -> None:
    model = tiny(kind, **({"depths": [2, 1]} if kind == "swin" else {})).double()
    if kind == "dinov2":  # what scales the network's answer does not scale the adapter's
        for block in model.dinov2.encoder.layer:
            block.layer_scale2.lambda1.data.fill_(0.3)
    method = thrifty.AdaptFormer(rank=4, pre_norm=pre_norm)
    at = thrifty.attach(model, method)
    base = run_double(model)
    with at.disabled():
        assert torch.equal(run_double(model), base)  # starts unchanged
    shake(at)
    norm = NORMS[kind][1]
    for i, (block, x, middle, y) in enumerate(block_inputs(model, at, norm)):
        e = adapters(at)[i]
        more = () if kind != "swin" else ((8, 8) if i < 2 else (4, 4),)
        with at.disabled():
            alone = block(x, *more)
            read = block.get_submodule(norm)(middle) if pre_norm else middle
        alone = alone if isinstance(alone, Tensor) else alone[0]
        torch.testing.assert_close(y, alone + bottleneck(e, read))
    other = thrifty.AdaptFormer(rank=4, pre_norm=not pre_norm)
    fresh = tiny(kind, **({"depths": [2, 1]} if kind == "swin" else {})).double()
    again = thrifty.attach(fresh, other)
    assert len(again.parameters()) == len(at.parameters())
    shake(again)
    assert not torch.allclose(run_double(fresh), run_double(model))  # the place where it reads matters


def test_scale_and_start() -> None:
    model = tiny("vit").double()
    at = thrifty.attach(model, thrifty.AdaptFormer(rank=4))
    assert {e.scale for e in adapters(at)} == {0.1}
    for e in adapters(at):
        assert 0 < float(e.down.weight.abs().max()) <= 1 / 4  # 1 / sqrt(16)
    run_double(model).square().sum().backward()
    for e in adapters(at):
        assert e.up.weight.grad.any() and not e.down.weight.grad.any()
    shake(at)
    y = run_double(model)
    with torch.no_grad():
        for e in adapters(at):
            e.scale *= 2
            e.up.weight /= 2
            e.up.bias /= 2
        torch.testing.assert_close(run_double(model), y)
        for e in adapters(at):
            e.scale = 0.0
        with at.disabled():
            frozen = run_double(model)
        assert torch.equal(run_double(model), frozen)
    learned = thrifty.attach(tiny("vit"), thrifty.AdaptFormer(rank=4, learned=True))
    assert all(torch.equal(e.scale, torch.ones(1)) for e in adapters(learned)) and count(learned) == 2 * (2 * 4 * 16 + 4 + 16 + 1)


def test_trains_and_leaves() -> None:
    model = tiny("vit")
    base = run(model)
    at = thrifty.attach(model, thrifty.AdaptFormer(rank=4))
    assert all("edits" in n.split(".") for n in frozen_stay(model, at))
    at.detach()
    torch.testing.assert_close(run(model), base)


@pytest.mark.timm
@pytest.mark.parametrize("kind", ["timm_vit", "timm_swin"])
def test_timm(kind: str) -> None:
    backbone = families.make(kind)
    model = backbone.fresh()
    at = thrifty.attach(model, thrifty.AdaptFormer(rank=4), example=backbone.example)
    shake(at)
    assert not torch.allclose(backbone.output(model), backbone.output(backbone.fresh()))


def test_refusals() -> None:
    for settings in ({"rank": 0}, {"dropout": 1.0}):
        with pytest.raises(NoSuchSetting, match=next(iter(settings))):
            thrifty.attach(tiny("vit"), thrifty.AdaptFormer(**settings))
    for kind in ("bert", "resnet"):
        with pytest.raises(Unfit, match="patches"):
            thrifty.attach(tiny(kind), thrifty.AdaptFormer())
    with pytest.raises(Unfit, match="no pre-norm block"):
        thrifty.attach(tiny("convnext"), thrifty.AdaptFormer())


def test_norms_behind_their_sub_layer_are_not_taken_for_norms_before_it() -> None:
    import transformers as hf

    config = hf.Swinv2Config(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
    with pytest.raises(Unfit, match="no pre-norm block"):
        thrifty.attach(hf.Swinv2ForImageClassification(config), thrifty.AdaptFormer())

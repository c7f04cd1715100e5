"""RepAdapter: published counts, its equation by hand, and that it merges into whatever reads it."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from backbones import count, frozen_stay, published, run, shake, tiny

import thrifty
from thrifty import Stack
from thrifty.core.errors import CannotMerge, NoSuchSetting, Unfit
from thrifty.methods import make
from thrifty.methods.repadapter import Affine
from thrifty.testing import tiny as families


def edits(at: thrifty.Attachment) -> list[Any]:
    return [e for e in at.edits.values() if isinstance(e, Affine)]


def test_counts() -> None:
    at = thrifty.attach(published("vit-b16"), thrifty.RepAdapter())
    assert count(at) == 239_808 and {sum(p.numel() for p in e.parameters()) for e in edits(at)} == {9_992}
    assert sum(e.A.numel() + e.B.numel() for e in edits(at)) == 221_184  # without biases
    assert count(thrifty.attach(published("vit-b16"), make("repadapter-attn"))) == 119_904
    stages = zip((2, 2, 18, 2), (128, 256, 512, 1024), strict=True)
    wanted = sum(2 * n * (8 * d + 8 + 4 * d + d) for n, d in stages)
    assert count(thrifty.attach(published("swin-b"), thrifty.RepAdapter())) == wanted


def test_start() -> None:
    model = tiny("vit")
    base = run(model)
    at = thrifty.attach(model, thrifty.RepAdapter())
    assert torch.equal(run(model), base)
    for e in edits(at):
        assert 0 < float(e.A.abs().max()) <= (6 / (16 + 8)) ** 0.5 and not any(t.any() for t in (e.a, e.B, e.b))


def test_by_hand() -> None:
    model = tiny("vit").double()
    images = torch.randn(2, 3, 16, 16).double()
    at = thrifty.attach(model, thrifty.RepAdapter(rank=4, scale=0.5))
    shake(at)
    y = run(model, pixel_values=images)
    found = edits(at)
    at.disable()

    def f(e: Any, u: torch.Tensor) -> torch.Tensor:
        low = u @ e.A.T + e.a
        halves = [low[..., :2] @ e.B[0].T, low[..., 2:] @ e.B[1].T]  # half of the hidden units for half of the channels
        return u + 0.5 * (torch.cat(halves, -1) + e.b)

    x = model.vit.embeddings(images)
    for i, block in enumerate(model.vit.layers):
        x = x + block.attention(f(found[2 * i], block.layernorm_before(x)))[0]
        x = x + block.mlp(f(found[2 * i + 1], block.layernorm_after(x)))
    torch.testing.assert_close(y, model.classifier(model.vit.layernorm(x)[:, 0]))


@pytest.mark.parametrize(("kind", "config"), [
    ("vit", {}), ("deit", {}), ("dinov2", {}), ("dinov2", {"use_swiglu_ffn": True}), ("swin", {"depths": [2, 1]}),
    ("swin", {"window_size": 3})])  # windows of 3 do not divide the map, so it is padded
def test_merges_exactly(kind: str, config: dict[str, Any]) -> None:
    model = tiny(kind, **config)
    base, keys = run(model), list(model.state_dict())
    at = thrifty.attach(model, thrifty.RepAdapter(rank=4, scale=2.0))
    shake(at, 0.1)
    y = run(model)
    assert not torch.allclose(y, base, atol=1e-3)
    at.merge()
    torch.testing.assert_close(run(model), y, atol=1e-5, rtol=1e-4)
    assert list(model.state_dict()) == keys
    at.unmerge()
    assert torch.equal(run(model), y)
    at.merge(keep_base=False)
    torch.testing.assert_close(run(model), y, atol=1e-5, rtol=1e-4)


@pytest.mark.timm
@pytest.mark.parametrize("kind", ["timm_vit", "timm_swin", "open_clip"])
def test_merges_into_fused_projections(kind: str) -> None:
    backbone = families.make(kind)
    model = backbone.fresh()
    at = thrifty.attach(model, thrifty.RepAdapter(rank=4), example=backbone.example)
    shake(at, 0.1)
    y = backbone.output(model)
    assert not torch.allclose(y, backbone.output(backbone.fresh()), atol=1e-3)
    at.merge()
    torch.testing.assert_close(backbone.output(model), y, atol=1e-4, rtol=1e-4)


def test_convnext_has_it_before_its_convolution_where_it_cannot_merge() -> None:
    model = tiny("convnext").double()
    images = torch.randn(2, 3, 32, 32).double()
    at = thrifty.attach(model, thrifty.RepAdapter(rank=4))
    shake(at)
    first, second = edits(at)[:2]
    x = torch.randn(2, 8, 5, 5).double()
    low = torch.einsum("rd,bdhw->brhw", first.A, x) + first.a[:, None, None]
    wanted = torch.cat([torch.einsum("oi,bihw->bohw", first.B[g], low[:, 2 * g : 2 * g + 2]) for g in (0, 1)], 1)
    torch.testing.assert_close(first(x), x + wanted + first.b[:, None, None])
    assert second.site.path.endswith("pwconv1")
    y = run(model, pixel_values=images)
    with pytest.raises(CannotMerge, match="depth-wise"):
        at.merge()
    assert torch.equal(run(model, pixel_values=images), y)


def test_it_does_not_merge_past_what_another_attachment_put_there() -> None:
    model = tiny("vit")
    at = thrifty.attach(model, thrifty.RepAdapter(), name="one")
    lora = thrifty.attach(model, thrifty.LoRA(), name="two")
    with pytest.raises(CannotMerge, match="LowRank"):
        at.merge()
    lora.detach()
    thrifty.attach(model, thrifty.RepAdapter(), name="three")
    with pytest.raises(CannotMerge, match="Affine"):
        at.merge()


def test_a_stack_of_two_merges_in_order(tmp_path: Any) -> None:
    model = tiny("vit")
    for name in ("a", "b"):
        at = thrifty.attach(model, thrifty.RepAdapter(rank=4), seed=ord(name))
        shake(at, 0.3)
        with torch.no_grad():
            for p in at.parameters():
                p.mul_(1.0 if name == "a" else -0.7)
        at.save(tmp_path / name)
        at.detach()
    both = thrifty.compose(model, Stack(tmp_path / "a", tmp_path / "b"))
    y = run(model)
    both.merge()
    torch.testing.assert_close(run(model), y, atol=1e-5, rtol=1e-4)


def test_trains_saves_and_leaves(tmp_path: Any) -> None:
    model = tiny("swin")
    base = run(model)
    at = thrifty.attach(model, thrifty.RepAdapter())
    assert all("edits" in n.split(".") for n in frozen_stay(model, at))
    y = run(model)
    at.save(tmp_path / "a")
    at.detach()
    torch.testing.assert_close(run(model), base)
    thrifty.load(model, tmp_path / "a").merge()
    torch.testing.assert_close(run(model), y, atol=1e-5, rtol=1e-4)


def test_refusals() -> None:
    for settings in ({"rank": 0}, {"g": 3}, {"dropout": 1.0}, {"beside": "mlp"}):
        with pytest.raises(NoSuchSetting, match=next(iter(settings))):
            thrifty.attach(tiny("vit"), thrifty.RepAdapter(**settings))
    with pytest.raises(NoSuchSetting, match="3 groups do not divide the width 16.*; 1, 2 do"):
        thrifty.attach(tiny("vit"), thrifty.RepAdapter(rank=6, g=3))
    with pytest.raises(Unfit, match="patches"):
        thrifty.attach(tiny("bert"), thrifty.RepAdapter())
    model = tiny("vit", qkv_bias=False)
    at = thrifty.attach(model, thrifty.RepAdapter())
    shake(at)
    with pytest.raises(CannotMerge, match="no bias"):
        at.merge()

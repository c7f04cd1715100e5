"""Consolidator: published counts, the shuffle and the groups by hand, and exact merging."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from backbones import count, frozen_stay, published, run, shake, tiny
from torch import Tensor

import thrifty
from thrifty.core.errors import CannotMerge, NoSuchSetting, NoSuchSite, Unfit
from thrifty.methods.consolidator import Grouped
from thrifty.testing import tiny as families


def edits(at: thrifty.Attachment) -> list[Any]:
    return [e for e in at.edits.values() if isinstance(e, Grouped)]


def test_counts() -> None:
    at = thrifty.attach(published("vit-b16"), thrifty.Consolidator())
    weights = sum(p.numel() for e in edits(at) for p in e.weights)
    assert weights == 221_184 and sum(e.bias.numel() for e in edits(at)) == 82_944
    in_place = {n.removeprefix("base:"): p.numel() for n, p in at.named_parameters() if n.startswith("base:")}
    norms = sum(k for n, k in in_place.items() if "layernorm" in n)
    assert norms == 38_400 and sum(in_place.values()) - norms == 82_944  # the layers' own biases
    assert count(at) == 221_184 + 2 * 82_944 + 38_400


def test_what_is_stored_after_training() -> None:
    model = tiny("vit", intermediate_size=64)
    at = thrifty.attach(model, thrifty.Consolidator(g=[4]))
    shake(at, 0.1)
    y, before = run(model), count(at)
    at.method.finish(at)
    torch.testing.assert_close(run(model), y, atol=1e-5, rtol=1e-4)
    assert before - count(at) == 2 * (4 * 16 + 64 + 16) and all(e.bias is None for e in edits(at))
    at.merge()
    torch.testing.assert_close(run(model), y, atol=1e-5, rtol=1e-4)


def by_hand(e: Any, x: Tensor) -> Tensor:
    """The branch channel by channel."""
    total = torch.zeros(len(x), e.site.dout, dtype=x.dtype) + e.bias
    for G in e.weights:
        g, each_out, each_in = G.shape
        dealt = [b * (x.shape[1] // g) + a for a in range(x.shape[1] // g) for b in range(g)]
        for i in range(g):
            for o in range(each_out):
                for c in range(each_in):
                    total[:, i * each_out + o] += G[i, o, c] * x[:, dealt[i * each_in + c]]
    return total


@pytest.mark.parametrize("groups", [[4], [8, 2], [1]])
def test_by_hand_and_as_a_matrix(groups: list[int]) -> None:
    at = thrifty.attach(tiny("vit").double(), thrifty.Consolidator(g=groups))
    shake(at)
    for e in edits(at)[:6]:
        x = torch.randn(3, e.site.din).double()
        with torch.no_grad():
            torch.testing.assert_close(e.branch(x), by_hand(e, x))
            delta = e.delta(e.site.weight)
        torch.testing.assert_close(e.branch(x) - e.bias, x @ delta.T)
        if groups == [1]:
            assert torch.equal(delta, e.weights[0][0]) and int(torch.linalg.matrix_rank(delta)) == 16
        else:
            support = torch.zeros_like(delta, dtype=torch.bool)
            for g in groups:
                rows = torch.arange(e.site.dout) // (e.site.dout // g)
                dealt = torch.arange(e.site.din).view(g, -1).T.flatten()
                group = torch.empty_like(dealt)
                group[dealt] = torch.arange(e.site.din) // (e.site.din // g)
                support |= rows[:, None] == group
            assert torch.equal(delta != 0, support)


def test_start_and_what_trains_in_place() -> None:
    model = tiny("vit")
    at = thrifty.attach(model, thrifty.Consolidator(g=[4]))
    assert all(0 < float(p.abs().max()) <= 1e-3 for e in edits(at) for p in e.parameters())
    moved = frozen_stay(model, at)
    own = {n for n in moved if "edits" not in n.split(".")}
    inside = {n for n, _ in model.named_parameters() if "edits" not in n.split(".") and (
        "layernorm" in n or ".layers." in n and n.endswith(".bias"))}
    assert own == inside - {n for n in inside if "k_proj" in n} | {n for n in own if "k_proj" in n}  # softmax ignores keys' bias
    plain = thrifty.attach(tiny("vit"), thrifty.Consolidator(g=[4], in_place=False))
    assert not plain.base


@pytest.mark.parametrize(("kind", "settings"), [
    ("vit", {}), ("swin", {"g": [4, 2]}), ("bert", {}), ("dinov2", {}), ("llama", {"bias": False}), ("gpt2", {})])
def test_merges_exactly(kind: str, settings: dict[str, Any], tmp_path: Any) -> None:
    model = tiny(kind)
    base, keys = run(model), list(model.state_dict())
    at = thrifty.attach(model, thrifty.Consolidator(**{"g": [4], **settings}))
    shake(at, 0.1)
    y = run(model)
    at.merge()
    torch.testing.assert_close(run(model), y, atol=1e-4, rtol=1e-4)
    assert list(model.state_dict()) == keys
    at.unmerge()
    assert torch.equal(run(model), y)
    at.save(tmp_path / "a")
    at.detach()
    torch.testing.assert_close(run(model), base)
    thrifty.load(model, tmp_path / "a")
    assert torch.equal(run(model), y)


@pytest.mark.timm
def test_a_fused_projection_is_one_layer() -> None:
    backbone = families.make("timm_vit")
    model = backbone.fresh()
    at = thrifty.attach(model, thrifty.Consolidator(g=[4]), example=backbone.example)
    assert len(edits(at)) == 2 * 4 and edits(at)[0].weights[0].shape == (4, 12, 4)
    shake(at, 0.1)
    y = backbone.output(model)
    at.merge()
    torch.testing.assert_close(backbone.output(model), y, atol=1e-4, rtol=1e-4)


def test_paths_drop_in_training_alone() -> None:
    at = thrifty.attach(tiny("vit"), thrifty.Consolidator(g=[4], drop_path=0.5))
    e = edits(at)[0].train()
    x = torch.randn(200, 3, 16)
    kept = e.branch(x).flatten(1).any(1)
    assert 60 < int(kept.sum()) < 140
    torch.testing.assert_close(e.branch(x).sum(0), 200 * e.eval().branch(x).mean(0), atol=0.3, rtol=1)
    assert e.branch(x).flatten(1).any(1).all()


def test_refusals() -> None:
    for settings in ({"g": []}, {"g": [0]}, {"drop_path": 1.0}):
        with pytest.raises(NoSuchSetting, match=next(iter(settings))):
            thrifty.attach(tiny("vit"), thrifty.Consolidator(**settings))
    with pytest.raises(NoSuchSetting, match="384 groups do not divide .*q_proj.*; 1, 2, 4, 8, 16 do"):
        thrifty.attach(tiny("vit"), thrifty.Consolidator())
    with pytest.raises(Unfit, match="no linear layer"):
        thrifty.attach(tiny("resnet"), thrifty.Consolidator(where="conv"))
    with pytest.raises(NoSuchSite):
        thrifty.attach(tiny("resnet"), thrifty.Consolidator())
    with pytest.raises(CannotMerge, match="no bias"):
        thrifty.attach(tiny("llama"), thrifty.Consolidator(g=[4])).merge()

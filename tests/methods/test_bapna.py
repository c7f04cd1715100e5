"""Bapna and Firat's adapters: published counts, and what their equation promises."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import count, frozen_stay, published, run, shake, tiny
from torch import Tensor

import thrifty
from thrifty.core.errors import CannotMerge, NoSuchSetting, Unfit


def first(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


@pytest.mark.parametrize(("rank", "wanted"), [(64, 1_208_064), (1024, 18_914_304)])
def test_counts(rank: int, wanted: int) -> None:
    assert count(thrifty.attach(published("bert-base"), thrifty.Bapna(rank=rank))) == wanted


def test_counts_in_an_encoder_and_decoder_and_without_biases() -> None:
    d, b = 768, 64
    at = thrifty.attach(published("t5-base"), thrifty.Bapna(rank=b))
    assert len(at.edits) == 24 and count(at) == 24 * (2 * d * b + b + d + 2 * d)
    assert count(thrifty.attach(published("t5-base"), thrifty.Bapna(rank=b, bias=False))) == 24 * (2 * d * b + 2 * d)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_by_hand(bias: bool) -> None:
    model = tiny("bert").double()
    layer, x = model.bert.encoder.layer[0], torch.randn(2, 5, 16, dtype=torch.float64)
    z = first(layer(x))
    at = thrifty.attach(model, thrifty.Bapna(rank=4, bias=bias))
    shake(at)
    edit = next(iter(at.edits.values()))
    centred = z - z.mean(-1, keepdim=True)
    normal = centred / (z.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * edit.norm.weight + edit.norm.bias
    extra = [edit.down.bias, edit.up.bias] if bias else [0.0, 0.0]
    expected = F.relu(normal @ edit.down.weight.T + extra[0]) @ edit.up.weight.T + extra[1] + z
    torch.testing.assert_close(first(layer(x)), expected)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "bart", "vit"])
def test_starts_as_the_base_whatever_the_norm_and_leaves(kind: str) -> None:
    model = tiny(kind)
    base = run(model)
    at = thrifty.attach(model, thrifty.Bapna(rank=4))
    for edit in at.edits.values():
        assert torch.equal(edit.norm.weight, torch.ones(16)) and not edit.norm.bias.any() and not edit.up.weight.any()
        torch.nn.init.normal_(edit.norm.weight)
    torch.testing.assert_close(run(model), base, atol=1e-6, rtol=1e-6)
    shake(at)
    assert not torch.allclose(run(model), base, atol=1e-3)
    assert all("edits" in n.split(".") for n in frozen_stay(model, at))
    with pytest.raises(CannotMerge):
        at.merge()
    at.detach()
    torch.testing.assert_close(run(model), base, atol=1e-6, rtol=1e-6)


def test_the_branch_does_not_see_the_scale_of_its_input() -> None:
    at = thrifty.attach(tiny("llama").double(), thrifty.Bapna(rank=4))
    shake(at)
    edit, z = next(iter(at.edits.values())), 3 * torch.randn(2, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(edit.branch(100 * z), edit.branch(z), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(edit(100 * z, z) - 100 * z, edit(z, z) - z, atol=1e-4, rtol=1e-4)


def test_saved_and_loaded(tmp_path: Any) -> None:
    model = tiny("bart")
    at = thrifty.attach(model, thrifty.Bapna(rank=4))
    shake(at)
    at.save(tmp_path / "adapter")
    fresh = tiny("bart")
    thrifty.load(fresh, tmp_path / "adapter")
    assert torch.equal(run(fresh), run(model))


def test_refusals() -> None:
    for method, setting in ((thrifty.Bapna(rank=0), "rank"), (thrifty.Bapna(act="x"), "act")):
        with pytest.raises(NoSuchSetting, match=setting):
            thrifty.attach(tiny("bert"), method)
    with pytest.raises(Unfit, match="not the last axis"):
        thrifty.attach(tiny("resnet"), thrifty.Bapna(), example=torch.randn(1, 3, 32, 32))

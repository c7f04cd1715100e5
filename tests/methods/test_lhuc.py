"""LHUC: published counts, and what its equation promises."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from backbones import count, frozen_stay, published, run, shake, tiny
from torch import Tensor

import thrifty
from thrifty.core.errors import CannotMerge, Unfit


def first(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


def test_counts() -> None:
    assert count(thrifty.attach(published("bert-base"), thrifty.LHUC())) == 9_216
    with torch.device("meta"):
        model = hf.BartModel(hf.BartConfig(d_model=512, encoder_layers=6, decoder_layers=6))
    assert count(thrifty.attach(model, thrifty.LHUC())) == 6_144


def test_a_layer_by_hand() -> None:
    model = tiny("bert").double()
    layer, x = model.bert.encoder.layer[1], torch.randn(2, 5, 16, dtype=torch.float64)
    h = first(layer(x))
    at = thrifty.attach(model, thrifty.LHUC())
    shake(at, 3.0)
    w = at.edits["bert.encoder.layer.1#contribution"].w
    torch.testing.assert_close(first(layer(x)), 2 / (1 + torch.exp(-w)) * h)


def test_contributions_lie_between_0_and_2_and_grow() -> None:
    at = thrifty.attach(tiny("bert"), thrifty.LHUC())
    edit = next(iter(at.edits.values()))
    assert torch.equal(edit.factors(), torch.ones(16))
    with torch.no_grad():
        edit.w.copy_(torch.linspace(-12, 12, 16))
    a = edit.factors()
    assert bool((a > 0).all()) and bool((a < 2).all()) and bool((a.diff() > 0).all())


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "bart", "vit"])
@pytest.mark.parametrize("where", ["block", "mlp.out"])
def test_starts_as_the_base_and_leaves(kind: str, where: str) -> None:
    model = tiny(kind)
    base = run(model)
    at = thrifty.attach(model, thrifty.LHUC(where=where))
    with at.disabled():
        frozen = run(model)
    assert torch.equal(run(model), frozen)
    shake(at, 3.0)
    assert not torch.allclose(run(model), frozen, atol=1e-7, rtol=1e-4)
    assert all(n.endswith(".w") for n in frozen_stay(model, at))
    at.detach()
    torch.testing.assert_close(run(model), base, atol=1e-6, rtol=1e-6)


def test_merges_into_the_second_layer_and_nowhere_else() -> None:
    model = tiny("bert").double()
    second = model.bert.encoder.layer[0].output.dense
    W, b = second.weight.detach().clone(), second.bias.detach().clone()
    at = thrifty.attach(model, thrifty.LHUC(where="mlp.out"))
    shake(at)
    a, y, h = next(iter(at.edits.values())).factors().detach(), run(model), torch.randn(2, 32, dtype=torch.float64)
    torch.testing.assert_close(second(h), F.linear(h * a, W, b))
    at.merge()
    torch.testing.assert_close(second.weight.detach(), W * a)
    assert torch.equal(second.bias, b)
    torch.testing.assert_close(run(model), y)
    with pytest.raises(CannotMerge):
        thrifty.attach(tiny("bert"), thrifty.LHUC()).merge()


def test_one_domain_after_another(tmp_path: Any) -> None:
    answers = {}
    for seed, name in enumerate(("medicine", "law")):
        model = tiny("t5")
        at = thrifty.attach(model, thrifty.LHUC())
        with torch.no_grad():
            for p in at.parameters():
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
        at.save(tmp_path / name)
        answers[name] = run(model)
    assert not torch.equal(answers["medicine"], answers["law"])
    model = tiny("t5")
    base = run(model)
    for name in ("medicine", "law", "medicine"):
        at = thrifty.load(model, tmp_path / name)
        assert torch.equal(run(model), answers[name])
        at.detach()
    assert torch.equal(run(model), base)


def test_nothing_is_decayed() -> None:
    method = thrifty.LHUC()
    assert {g["weight_decay"] for g in method.groups(thrifty.attach(tiny("bert"), method), 1e-2, 0.1)} == {0.0}


def test_channels_of_images_are_refused_and_those_of_convolutions_scaled() -> None:
    x = torch.randn(1, 3, 32, 32)
    with pytest.raises(Unfit, match="not the last axis"):
        thrifty.attach(tiny("resnet"), thrifty.LHUC(), example=x)
    conv = torch.nn.Conv2d(3, 6, 3)
    model = torch.nn.Sequential(conv)
    at = thrifty.attach(model, thrifty.LHUC(where="conv"), example=x)
    shake(at)
    (edit,) = at.edits.values()
    torch.testing.assert_close(model(x), F.conv2d(x, conv.weight, conv.bias) * edit.factors().view(6, 1, 1))

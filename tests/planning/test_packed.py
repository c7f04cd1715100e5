"""Layers in four bits, as plans have them and as runs do."""
from __future__ import annotations

from pathlib import Path

import pytest
import small_jobs
import torch
from torch import nn

import thrifty
from thrifty.core.errors import NoSuchSetting, ThriftyError
from thrifty.models import load
from thrifty.planning.packed import Packed


def test_a_packed_layer_has_the_bytes_of_the_real_one() -> None:
    pytest.importorskip("bitsandbytes", reason='weights in four bits need bitsandbytes: pip install "thrifty[quantised]"')
    from thrifty.models.nf4 import pack

    linear = nn.Linear(300, 500)
    stands, state = Packed(linear), pack(linear).weight.quant_state
    assert stands.weight.nbytes == pack(linear).weight.nbytes == 300 * 500 // 2
    assert stands.scales.nbytes == state.absmax.nbytes + state.state2.absmax.nbytes


def test_a_packed_layer_gives_shapes_and_gradients_and_keeps_no_weight() -> None:
    layer, kept = Packed(nn.Linear(6, 4)), []
    x = torch.ones(2, 3, 6, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x)
    y.sum().backward()
    assert y.shape == (2, 3, 4) and x.grad is not None and x.grad.shape == x.shape and not kept


def test_four_bits_are_planned_for_models_by_name_and_for_methods_that_leave_weights_alone(tmp_path: Path) -> None:
    small_jobs.bert(tmp_path / "bert")
    wide, narrow = (thrifty.plan(str(tmp_path / "bert"), ["lora", "full"], precision="float32", device="cpu", weights=weights)
                    for weights in ("full", "nf4"))
    assert {each.method for each in wide.forecasts} == {"lora", "full"} and {each.method for each in narrow.forecasts} == {"lora"}
    assert "quantised" in narrow.refused["full"]
    before, after = (next(each for each in found.forecasts if each.method == "lora") for found in (wide, narrow))
    assert after.memory.weights < before.memory.weights and after.trainable == before.trainable
    with pytest.raises(NoSuchSetting, match="by name"):
        thrifty.plan(load(str(tmp_path / "bert"), "text-classification", ["a", "b"]), "lora", weights="nf4")
    with pytest.raises(ThriftyError, match="weights"):
        thrifty.plan(str(tmp_path / "bert"), "lora", weights="nf5")

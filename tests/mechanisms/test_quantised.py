"""LoRA beside quantised linears: it acts, its gradients flow, and merging says which base it would merge into."""
from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import thrifty
from thrifty.core.errors import CannotMerge
from thrifty.testing.measuring import distance, stir


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(2))
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


def _dynamic(model: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(model, {"layers.0", "layers.1"}, dtype=torch.qint8)


def _torchao(model: nn.Module) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig(), filter_fn=lambda m, name: name.startswith("layers"))
    return model


def _bitsandbytes(model: nn.Module) -> nn.Module:
    import bitsandbytes as bnb

    for i, dense in enumerate(model.layers):
        layer = bnb.nn.Linear4bit(64, 64, quant_type="nf4", compute_dtype=torch.float32)
        layer.load_state_dict(dense.state_dict())
        model.layers[i] = layer.to("cpu")
    with torch.no_grad():
        model(torch.randn(1, 64))
    return model


def _needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


KINDS = [pytest.param(_dynamic, id="dynamic_int8"), pytest.param(_torchao, id="torchao_int8", marks=_needs("torchao")),
         pytest.param(_bitsandbytes, id="nf4", marks=_needs("bitsandbytes"))]


@pytest.mark.parametrize("quantise", KINDS)
def test_lora_on_quantised_linears(quantise: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    dense = Net().eval()
    model = quantise(copy.deepcopy(dense))
    x = torch.randn(3, 64)
    with torch.no_grad():
        base = model(x)
    assert distance(base, dense(x).detach()) < 0.2, "the quantisation itself is off"
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="layers.*"), example=x)
    assert len(at.edits) == 2
    with torch.no_grad():
        assert torch.equal(model(x), base)
    stir(at)
    edited = model(x)
    assert distance(edited.detach(), base) > 1e-3
    edited.pow(2).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in at.parameters())
    with at.disabled(), torch.no_grad():
        assert torch.equal(model(x), base)
    with pytest.raises(CannotMerge, match=r"'layers\.0' is quantised"):
        at.merge()
    assert torch.equal(model(x), edited)
    report = at.merge(quantised="dequantise")
    assert report.dequantised == ["layers.0", "layers.1"]
    assert type(model.layers[0]) is nn.Linear
    with torch.no_grad():  # dynamic quantisation also rounds what comes in, a dense layer does not
        assert distance(model(x), edited.detach()) < 0.05
        at.detach()
        assert torch.equal(model(x), base)


def test_dequantised_weights_are_the_ones_that_the_layer_multiplies_by() -> None:
    model = _dynamic(Net())
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="layers.0"), example=torch.randn(1, 64))
    site = at.sites("layers.0")[0]
    assert torch.equal(site.weight, model.layers[0].weight().dequantize())
    assert (site.din, site.dout) == (64, 64)

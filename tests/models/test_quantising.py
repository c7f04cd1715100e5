"""Frozen weights in four bits: the codes recomputed from QLoRA's description, the layers, and what trains beside them."""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_folders
import torch
from torch import Tensor, nn

import thrifty
from thrifty.core import weight as weights
from thrifty.core.errors import NoSuchSetting, Unfit, WrongBase
from thrifty.models import dequantise, load, quantise

pytest.importorskip("bitsandbytes", reason='weights in four bits need bitsandbytes: pip install "thrifty[quantised]"')

MEAN_TAIL = 0.9677083


def table() -> Tensor:
    """The 16 numbers, by their closed form."""
    def quantiles(count: int) -> Tensor:
        return torch.special.ndtri(torch.linspace(MEAN_TAIL, 0.5, count, dtype=torch.float64)[:-1])

    found = torch.cat([quantiles(9), torch.zeros(1, dtype=torch.float64), -quantiles(8)]).sort().values
    return found / found.max()


def dynamic_map() -> Tensor:
    """The 256 numbers in which scales are held."""
    found = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float64)
        middles = (edges[1:] + edges[:-1]) / 2 * 10.0 ** (i - 6)
        found += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(found, dtype=torch.float64).sort().values


def codes(w: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [n] and scales [n / 64, rounded up] of the flattened weight: the nearest of the table, block by block."""
    flat, found, scales = w.double().flatten(), [], []
    for block in flat.split(64):
        scale = block.abs().max()
        found.append((block[:, None] / (scale if scale > 0 else 1) - table()).abs().argmin(1))
        scales.append(scale)
    return torch.cat(found), torch.stack(scales)


def unpacked(packed: Tensor, count: int) -> Tensor:
    """Two codes of each byte, the first in the high half."""
    flat = packed.flatten().long()
    return torch.stack([flat >> 4, flat & 15], 1).flatten()[:count]


def packed(w: Tensor, bias: Tensor | None = None) -> Any:
    from thrifty.models.nf4 import pack

    linear = nn.Linear(w.shape[1], w.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(w.clone())
    linear.bias = None if bias is None else nn.Parameter(bias)
    return pack(linear)


def test_the_table_is_that_of_the_paper() -> None:
    said = torch.tensor([-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0, 0.0795803, 0.1609302,
                         0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0])
    state = packed(torch.randn(8, 64)).weight.quant_state
    torch.testing.assert_close(state.code, said, rtol=0, atol=1e-6)
    torch.testing.assert_close(state.code.double(), table(), rtol=0, atol=1e-6)
    torch.testing.assert_close(state.state2.code.double(), dynamic_map(), rtol=0, atol=1e-7)
    assert state.blocksize == 64 and state.state2.blocksize == 256 and state.quant_type == "nf4"


@pytest.mark.parametrize("shape", [(48, 64), (33, 40), (5, 7)])  # blocks that straddle rows, and a short last one
def test_codes_are_the_nearest_of_the_table_in_blocks_of_64(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    w = torch.randn(shape)
    layer = packed(w)
    mine, scales = codes(w)
    assert torch.equal(unpacked(layer.weight.data, w.numel()), mine)
    assert layer.weight.dtype == torch.uint8 and layer.weight.numel() == (w.numel() + 1) // 2
    assert weights.count(layer.weight) == w.numel()
    state = layer.weight.quant_state
    torch.testing.assert_close(state.offset.double(), scales.mean(), rtol=1e-6, atol=0)
    apart = scales - scales.mean()
    of_blocks = torch.stack([part.abs().max() for part in apart.split(256)])
    torch.testing.assert_close(state.state2.absmax.double(), of_blocks, rtol=1e-5, atol=1e-7)
    again = dynamic_map()[state.absmax.long()] * of_blocks.repeat_interleave(256)[: len(apart)] + scales.mean()
    assert bool(((again - scales).abs() <= 0.00704 * of_blocks.max() + 1e-6).all())
    whole = table()[mine] * again.repeat_interleave(64)[: w.numel()]
    torch.testing.assert_close(weights.read(layer, "it").double().flatten(), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("w", [torch.randn(16, 64), torch.full((2, 64), 3.0), torch.eye(64), torch.zeros(2, 64)],
                         ids=["random", "constant", "one-hot", "zero"])
def test_the_error_is_bounded_by_the_largest_gap(w: Tensor) -> None:
    found = weights.read(packed(w), "it")
    scales = torch.stack([block.abs().max() for block in w.flatten().split(64)])
    lost = 0.00704 * (scales - scales.mean()).abs().max()  # of the scales themselves
    assert bool(((found - w).abs() <= 0.1519 * scales.max() + lost + 1e-6).all())


def test_codes_do_not_change_with_the_scale_but_do_with_the_sign() -> None:
    torch.manual_seed(1)
    w = torch.randn(8, 64)
    assert torch.equal(packed(w).weight.data, packed(4 * w).weight.data)
    mine, other = (unpacked(packed(v).weight.data, v.numel()) for v in (w, -w))
    assert not torch.equal(other, 15 - mine)  # the table is not symmetric


def test_a_weight_takes_four_bits_and_an_eighth() -> None:
    layer = packed(torch.randn(512, 512))
    state = layer.weight.quant_state
    held = sum(t.numel() * t.element_size() for t in (layer.weight, state.absmax, state.state2.absmax))
    assert 8 * held / 512**2 == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-9)


def test_the_layer_multiplies_by_what_its_codes_stand_for() -> None:
    torch.manual_seed(2)
    layer = packed(torch.randn(24, 64), torch.randn(24))
    dense, x = weights.read(layer, "it"), torch.randn(3, 5, 64, requires_grad=True)
    torch.testing.assert_close(layer(x), x @ dense.T + layer.bias, rtol=1e-5, atol=1e-5)
    g = torch.randn(3, 5, 24)
    layer(x).backward(g)
    torch.testing.assert_close(x.grad, g @ dense, rtol=1e-5, atol=1e-5)
    assert layer.weight.grad is None and not layer.weight.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.bias.dtype == torch.float32, "computing in another precision changed the bias"


def test_what_is_turned_and_what_is_not(tmp_path: Path) -> None:
    held = load(str(tiny_folders.bert(tmp_path / "bert", "BertForSequenceClassification")), "text-classification", ["a", "b", "c"],
                weights="nf4")
    kinds = {path: type(module).__name__ for path, module in held.model.named_modules()}
    assert kinds["bert.encoder.layer.0.attention.self.query"] == kinds["bert.encoder.layer.1.output.dense"] == "NF4Linear"
    assert kinds["classifier"] == "Linear" and kinds["bert.embeddings.word_embeddings"] == "Embedding"
    assert held.source["weights"] == "nf4" and "13 linear layers are held in four bits (NF4)." in held.source["notes"][-1]
    full = load(str(tmp_path / "bert"), "text-classification", ["a", "b", "c"])
    assert held.source["parameters"] == full.source["parameters"]
    mine = {n: p for n, p in held.model.named_parameters() if p.is_floating_point()}
    assert all(torch.equal(p, full.model.get_parameter(n)) for n, p in mine.items())


def test_tied_kept_and_wide_layers_stay() -> None:
    class Words(nn.Module):
        _keep_in_fp32_modules = ("wo",)

        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(8, 16)
            self.tied = nn.Linear(16, 8, bias=False)
            self.tied.weight = self.embed.weight
            self.wo, self.own, self.plain = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
            self.heads = nn.MultiheadAttention(16, 2)  # reads the weight of its last layer itself

    assert quantise(Words(), ["own.weight"]) == ["plain"]
    with pytest.raises(Unfit, match="no linear layer that could be held in four bits"):
        quantise(nn.Embedding(3, 4))


def test_halves_are_turned_as_they_are_stored(tmp_path: Path) -> None:
    folder = tiny_folders.bert(tmp_path / "bert")
    model = load(str(folder), "text-classification", ["a", "b"], dtype="bfloat16").model
    model.bert.save_pretrained(folder) if hasattr(model, "bert") else model.save_pretrained(folder)
    held = load(str(folder), "text-classification", ["a", "b"], weights="nf4").model
    layer = held.get_submodule("bert.encoder.layer.0.attention.self.query")
    assert layer.weight.quant_state.dtype == torch.bfloat16
    assert {p.dtype for p in held.parameters()} == {torch.uint8, torch.float32}


def test_dense_again() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    quantise(model)
    x = torch.randn(5, 64)
    before = model(x)
    assert dequantise(model) == ["0", "2"] and all(type(m) in (nn.Linear, nn.ReLU) for m in model)
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    assert dequantise(model) == []


def test_a_tuner_acts_trains_saves_and_loads_on_four_bits(tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)).eval()
    dense = copy.deepcopy(model)
    quantise(model)
    spare, x = copy.deepcopy(model), torch.randn(6, 64)
    before, held = model(x), {n: p.clone() for n, p in model.named_parameters()}
    at = thrifty.attach(model, thrifty.LoRA(where="0|2", rank=4), example=x)
    assert torch.equal(model(x), before) and at.summary().base == 2 * 64 * 65
    optimizer = torch.optim.AdamW(at.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x) ** 2).mean().backward()
        optimizer.step()
    assert all(torch.equal(model.get_parameter(n), p) for n, p in held.items()) and not torch.equal(model(x), before)
    at.save(tmp_path / "adapter")
    thrifty.load(spare, tmp_path / "adapter", example=x)
    torch.testing.assert_close(spare(x), model(x), rtol=0, atol=0)
    with pytest.raises(WrongBase, match="Its base was quantised to four bits and this one is not"):
        thrifty.load(dense, tmp_path / "adapter", example=x)
    after = model(x).detach()
    report = at.merge(quantised="dequantise", keep_base=False)
    assert len(report.dequantised) == 2
    torch.testing.assert_close(model(x), after, rtol=1e-4, atol=1e-5)


def test_what_trains_weights_in_place_is_refused() -> None:
    model = nn.Sequential(nn.Linear(64, 64))
    quantise(model)
    with pytest.raises(Unfit, match="is quantised .*has no gradient: choose a method that adds parameters"):
        thrifty.attach(model, thrifty.methods.make("full"), example=torch.randn(2, 64))
    with pytest.raises(Unfit, match="is quantised .*cannot train in place: choose a method that adds parameters"):
        thrifty.attach(model, thrifty.LoRA(where="0"), also_train="0.weight", example=torch.randn(2, 64))
    assert not thrifty.attachments(model)


def test_an_unknown_way_to_hold_weights(tmp_path: Path) -> None:
    with pytest.raises(NoSuchSetting, match="weights 'nf5' are not offered. Did you mean 'nf4'"):
        load(str(tiny_folders.bert(tmp_path / "bert")), "text-classification", ["a", "b"], weights="nf5")


def test_the_published_memory_of_seven_billion() -> None:
    """6.48 billion weights in linear layers take 3.34 GB."""
    linear = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert linear * (4 + 8 / 64 + 32 / (64 * 256)) / 8 / 1e9 == pytest.approx(3.34, abs=0.005)
    assert np.isclose(64 * 32 * (4 * 2 * 4096 + 3 * (4096 + 11008)), 159_907_840)

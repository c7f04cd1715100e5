"""VL-PET: reference arrays, published counts, and how fine its gates are."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from backbones import IDS, MASK, count, golden, run, shake, tiny
from test_vl_adapter import see, seeing, vl_bart
from torch import Tensor, nn
from transformers.models.bart.modeling_bart import BartEncoderLayer

import thrifty
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.methods import make
from thrifty.methods.vl_pet import GATES, Granular, ValueAdapter

SMALL: dict[str, Any] = {"rank": 8, "heads": 4, "gate_rank": 4, "value_rank": 4}


class Encoder(nn.Module):
    """One layer of BART."""

    def __init__(self, width: int, heads: int, feed: int):
        super().__init__()
        config = hf.BartConfig(d_model=width, encoder_attention_heads=heads, encoder_ffn_dim=feed, attn_implementation="sdpa")
        self.layers = nn.ModuleList([BartEncoderLayer(config)])

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.layers[0](x, mask)


def test_reference_arrays() -> None:
    g = golden("vlm_vlpet_encoder_small")
    model = Encoder(16, g["hp/heads"], 24).eval()
    own = {k.removeprefix("w/"): v for k, v in g.items() if k.startswith("w/") and "adapter" not in k}
    model.layers[0].load_state_dict(own)
    batch = (g["in/hidden"], g["in/additive_mask"])
    method = thrifty.VLPET(rank=g["hp/adapter_dim"], heads=g["hp/adapter_heads"], gate="small", gate_rank=g["hp/gate_dim"])
    at = thrifty.attach(model, method, example=batch)
    named = {}
    for row in at.plan:
        if row.edit == "vl-pet":
            half, edit = ("attn" if row.role == "after.attn" else "ff"), at.edits[row.key]
            gate = "encoder_attn" if half == "attn" else "encoder_ff"
            named |= {f"{half}_adapter_multihead_up.{n}": p for n, p in edit.up.named_parameters()}
            named |= {f"{half}_adapter_multihead_down.{i}.{n}": p for i, d in enumerate(edit.down) for n, p in d.named_parameters()}
            named |= {f"{gate}_adapter_gating_small_xy_cat.{n}": p for n, p in edit.gate.first.named_parameters()}
    assert len(named) == 24
    with torch.no_grad():
        for name, p in named.items():
            p.copy_(g[f"w/{name}"])
    y = model(*batch)
    torch.testing.assert_close(y, g["out/layer"], atol=1e-5, rtol=0)
    (y * g["in/probe"]).sum().backward()
    for name, p in named.items():
        torch.testing.assert_close(p.grad, g[f"grad/{name}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("gate", "layer", "total", "percent"), [
    ("large", 593_280, 6_052_416, "4.16%"), ("middleX", 298_178, 4_281_804, "2.98%"), ("middleY", 298_176, 4_281_792, "2.98%"),
    ("small", 299_714, 4_291_020, "2.99%")])
def test_counts(gate: str, layer: int, total: int, percent: str) -> None:
    model = vl_bart()
    at = thrifty.attach(model, thrifty.VLPET(gate=gate), check=False)
    own = {row.key: sum(p.numel() for p in at.edits[row.key].parameters()) for row in at.plan}
    assert sum(n for key, n in own.items() if ".encoder.layers.0." in key) == layer
    assert sum(n for key, n in own.items() if "#vl-pet-value" in key) == 889_920
    assert sum(p.numel() for n, p in at.named_parameters() if n.startswith("base:language")) == 19_968
    assert count(at) == total and f"{total / sum(p.numel() for p in model.parameters()):.2%}" == percent


def gates(at: Any) -> tuple[Granular, Tensor, Tensor]:
    """An edit of the encoder, and an x and a y for its gate."""
    edit = next(e for e in at.edits.values() if isinstance(e, Granular))
    x, y = torch.randn(2, 2, 5, 16, dtype=torch.float64)
    return edit, x, y


@pytest.mark.parametrize("gate", GATES)
def test_how_fine(gate: str) -> None:
    at = thrifty.attach(tiny("bart").double(), thrifty.VLPET(**SMALL, gate=gate))
    shake(at)
    edit, x, y = gates(at)
    opened = edit.gate(x, y)
    assert opened.shape == {"large": (2, 5, 16), "middleX": (2, 5, 1), "middleY": (16,), "small": (2, 1, 1)}[gate]
    first = getattr(edit.gate, "first", None)
    if gate == "large":
        wanted = torch.sigmoid(edit.gate.second(F.gelu(first(x), approximate="tanh")))
    elif gate == "middleX":
        wanted = torch.sigmoid((x + y) @ first.weight.T + first.bias)
    elif gate == "middleY":
        wanted = 1 + edit.gate.g
    else:
        logit = x @ first.weight[:, :16].T + y @ first.weight[:, 16:].T + first.bias
        wanted = torch.sigmoid(logit).sum(1, keepdim=True) / 5
    torch.testing.assert_close(opened, wanted)
    assert gate == "middleY" or bool(((opened > 0) & (opened < 1)).all())


def test_heads_are_one_matrix() -> None:
    at = thrifty.attach(tiny("bart").double(), thrifty.VLPET(**SMALL, gate="middleY", scale=0.5))
    shake(at)
    edit, x, h = gates(at)
    down, bias = (torch.cat([getattr(d, n) for d in edit.down]) for n in ("weight", "bias"))
    edit.context.taps[edit.key] = x
    wanted = 0.5 * (1 + edit.gate.g) * (h + F.gelu(h @ down.T + bias, approximate="tanh") @ edit.up.weight.T + edit.up.bias)
    torch.testing.assert_close(edit(h), wanted)


def test_open_gates_and_no_branch_are_the_base() -> None:
    model = seeing()
    base = see(model)
    at = thrifty.attach(model, thrifty.VLPET(**SMALL, gate="middleY", zero=True))
    assert not torch.allclose(see(model), base)
    with torch.no_grad():
        for edit in at.edits.values():
            if isinstance(edit, Granular):
                edit.gate.g.zero_()
    torch.testing.assert_close(see(model), base)


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_starts_half_open_or_scaled(kind: str) -> None:
    """With V_2 = 0 and v_2 = 0 the gate is a half exactly; the residual that it reads is what the layer adds to."""
    model = tiny(kind).double()
    settings = {**SMALL, "zero": True, "scale": 0.3 if kind == "t5" else 1.0}
    at = thrifty.attach(model, make("vl-pet-t5", **settings))
    with torch.no_grad():
        for edit in at.edits.values():
            if isinstance(edit, Granular):
                edit.gate.second.bias.zero_()
    layer = (model.model.encoder.layers if kind == "bart" else model.encoder.block)[1]
    x = torch.randn(2, 4, 16, dtype=torch.float64)
    read: list[Tensor] = []
    for edit in at.edits.values():
        if isinstance(edit, Granular):
            edit.gate.register_forward_pre_hook(lambda m, a: read.append(a[0]))
    y = layer(x, None)
    y = y if isinstance(y, Tensor) else y[0]
    at.disable()
    if kind == "bart":
        a = layer.self_attn_layer_norm(x + 0.5 * layer.self_attn(x)[0])
        wanted = layer.final_layer_norm(a + 0.5 * layer.fc2(F.gelu(layer.fc1(a))))
    else:
        first, second = layer.layer
        a = x + 0.15 * first.SelfAttention(first.layer_norm(x))[0]
        wanted = a + 0.15 * second.DenseReluDense(second.layer_norm(a))
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(read[0], x), torch.testing.assert_close(read[1], a)


def test_the_decoders_values() -> None:
    model = tiny("bart").double()
    at = thrifty.attach(model, thrifty.VLPET(**SMALL))
    shake(at)
    beside = [(row.path, at.edits[row.key]) for row in at.plan if row.edit == "vl-pet-value"]
    assert [path for path, _ in beside] == [f"model.decoder.layers.{i}.encoder_attn.v_proj" for i in range(2)]
    e = torch.randn(2, 3, 16, dtype=torch.float64)
    layer, edit = model.get_submodule(beside[0][0]), beside[0][1]
    assert isinstance(edit, ValueAdapter)
    wanted = e @ layer.weight.T + layer.bias + edit.up(F.gelu(edit.down(e), approximate="tanh"))
    torch.testing.assert_close(layer(e), wanted)
    written = [model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=4, use_cache=c) for c in (True, False)]
    assert torch.equal(*written)


@pytest.mark.parametrize("gate", GATES)
def test_padding_reaches_the_small_gate_alone(gate: str) -> None:
    model = tiny("bart").double()
    at = thrifty.attach(model, thrifty.VLPET(**SMALL, gate=gate))
    shake(at)
    y = run(model)
    padded = model(input_ids=F.pad(IDS, (0, 3)), attention_mask=F.pad(MASK, (0, 3)), decoder_input_ids=IDS[:, :3]).logits
    assert torch.allclose(padded, y, atol=1e-9) == (gate != "small")


def test_norms_of_the_decoder_stay() -> None:
    model = seeing()
    at = thrifty.attach(model, thrifty.VLPET(**SMALL))
    see(model).square().mean().backward()
    trains = {n for n, p in model.named_parameters() if p.grad is not None}
    assert not any(".decoder." in n and "norm" in n for n in trains)
    assert {n for n in trains if ".encoder." in n and "norm" in n and ".edits." not in n} == {
        n for n, _ in model.named_parameters() if ".encoder." in n and "norm" in n and ".edits." not in n}
    assert any(n.startswith("visual_embedding.") for n in trains) and at.parameters()


def test_saved(tmp_path: Path) -> None:
    model = seeing("t5")
    at = thrifty.attach(model, make("vl-pet-t5", **SMALL))
    shake(at, 0.1)
    at.save(tmp_path)
    fresh = seeing("t5")
    thrifty.load(fresh, tmp_path)
    assert torch.equal(see(fresh), see(model))


def test_refusals() -> None:
    for setting, value in (("rank", 6), ("heads", 0), ("gate", "tiny"), ("scale", 0.0), ("gate_rank", 0), ("value_rank", 0)):
        with pytest.raises(NoSuchSetting, match=setting):
            thrifty.attach(tiny("bart"), thrifty.VLPET(**{**SMALL, setting: value}))
    with pytest.raises(Unfit, match="what comes next"):
        thrifty.attach(tiny("llama"), thrifty.VLPET(**SMALL, gate="small"))
    with pytest.raises(Unfit, match="no pre-norm block"):
        thrifty.attach(tiny("resnet"), thrifty.VLPET(**SMALL))

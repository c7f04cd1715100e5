"""UniPELT: reference arrays, published counts, gates forced open and shut, padding."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import IDS, MASK, count, frozen_stay, golden, published, run, shake, tiny
from test_prefix import Attention
from torch import Tensor, nn

import thrifty
from thrifty.core import Attachment, Site
from thrifty.core.errors import CannotCombine, CannotMerge, DeadEdit, NoSuchSetting, NoSuchSite, Unfit
from thrifty.core.probe import Seen
from thrifty.methods import make
from thrifty.methods.prompts.gate import Gate
from thrifty.methods.unipelt import GatedLowRank, GatedPrefix, GateTap

SMALL: dict[str, Any] = {"length": 3, "rank": 2, "reduction": 4, "hidden": 8}


def test_reference_arrays() -> None:
    g = golden("nlp_unipelt_attention")
    model = nn.Sequential()
    model.attn = Attention(12, g["hp/heads"]).double()
    model.forward = lambda *a: model.attn(*a)
    for name in ("query", "key", "value"):
        getattr(model.attn, name).load_state_dict({k: g[f"w/{name}_{k}"] for k in ("weight", "bias")})
    batch = (g["in/hidden"], g["in/additive_mask"])
    at = Attachment(model, seen=Seen(model, batch))
    whole = Site("attn", model.attn, "attn", seen=at.seen)
    tap, prefix = at.put(whole, GateTap), at.put(whole, GatedPrefix, length=g["hp/prefix_length"])
    low = {name: at.put(Site(f"attn.{name}", getattr(model.attn, name), "linear", seen=at.seen), GatedLowRank,
                        rank=g["hp/lora_r"]) for name in ("query", "value")}
    with torch.no_grad():
        prefix.k.copy_(g["in/prefix_key"][0]), prefix.v.copy_(g["in/prefix_value"][0])
        for edit, name in ((tap, "prefix"), (low["query"], "query"), (low["value"], "value")):
            edit.gate.linear.weight.copy_(g[f"w/{name}_gate_weight"]), edit.gate.linear.bias.copy_(g[f"w/{name}_gate_bias"])
        for name, edit in low.items():
            edit.A.copy_(g[f"w/{name}_lora_A"]), edit.B.copy_(g[f"w/{name}_lora_B"])
    for edit, name in ((tap, "prefix"), (low["query"], "query"), (low["value"], "value")):
        torch.testing.assert_close(edit.gate(batch[0], None).flatten(), g[f"out/{name}_gate_value"], atol=1e-10, rtol=0)
    y = model(*batch)
    torch.testing.assert_close(y, g["out/context"], atol=1e-10, rtol=0)
    (y * g["in/probe"]).sum().backward()
    for tensor, name in ((low["query"].A, "query_lora_A"), (low["query"].B, "query_lora_B"),
                         (tap.gate.linear.weight, "prefix_gate_weight"), (low["value"].gate.linear.weight, "value_gate_weight")):
        torch.testing.assert_close(tensor.grad, g[f"grad/{name}"], atol=1e-10, rtol=0)
    for tensor, name in ((prefix.k, "key"), (prefix.v, "value")):
        torch.testing.assert_close(tensor.grad, g[f"grad/prefix_{name}_per_row"].sum(0), atol=1e-10, rtol=0)


def test_counts() -> None:
    example = {"input_ids": torch.ones(1, 4, dtype=torch.long, device="meta")}
    method = thrifty.UniPELT()
    at = thrifty.attach(published("bert-base"), method, example=example)
    gates = sum(p.numel() for n, p in at.named_parameters() if ".linear." in n or ":gate." in n)
    assert gates == 36_912
    assert count(at) == 9_857_024 + 894_528 + 294_912 + gates
    at = thrifty.attach(published("bert-base"), thrifty.UniPELT(mlp=False), example=example)
    assert count(at) == 184_320 + 894_528 + 294_912 + gates
    assert f"{count(at) / 109_482_240:.2%}" == "1.29%"


def test_a_layer_by_hand() -> None:
    """Masked: the gates average over the tokens that there are."""
    model = tiny("bert").double()
    at = thrifty.attach(model, thrifty.UniPELT(**SMALL, mlp=False))
    shake(at)
    y = model.bert(IDS, MASK, output_hidden_states=True).hidden_states
    x, layer = y[0], model.bert.encoder.layer[0]
    edits = {(r.path.rpartition(".")[2], r.edit): at.edits[r.key] for r in at.plan if ".layer.0." in r.path}
    whole, attention = MASK.bool(), layer.attention.self
    at.disable()

    def gate(edit: Any, h: Tensor) -> Tensor:
        opened = torch.sigmoid(h @ edit.gate.linear.weight[0] + edit.gate.linear.bias)
        return torch.stack([row[real].mean() for row, real in zip(opened, whole, strict=True)])[:, None, None]

    def low(name: str) -> Tensor:
        edit, projection = edits[name, "gated-low-rank"], getattr(attention, name)
        return projection(x) + gate(edit, x) * (x @ edit.A.T @ edit.B.T)

    prefix, opened = edits["self", "gated-prefix"], gate(edits["self", "gate-tap"], x)[..., None]
    q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (low("query"), attention.key(x), low("value")))
    k, v = torch.cat([opened * prefix.k, k], 2), torch.cat([opened * prefix.v, v], 2)
    scores = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(~F.pad(whole, (3, 0), value=True)[:, None, None], -torch.inf)
    heads = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    a = layer.attention.output.LayerNorm(x + layer.attention.output.dense(heads))
    u = a + layer.output.dense(F.gelu(layer.intermediate.dense(a)))
    adapter = edits["LayerNorm", "gated-bottleneck-before-norm"]
    h = layer.output.LayerNorm(u)
    expected = layer.output.LayerNorm(u + gate(adapter, h) * adapter.up(torch.relu(adapter.down(h))))
    torch.testing.assert_close(y[1][whole], expected[whole])


def force(at: thrifty.Attachment, **gates: float) -> None:
    """Open (1) or shut (0) the gates of a kind of edit, exactly, whatever the text."""
    with torch.no_grad():
        for row in at.plan:
            for module in at.edits[row.key].modules():
                if isinstance(module, Gate):
                    nn.init.zeros_(module.linear.weight)
                    value = gates["prefix" if row.edit == "gate-tap" else "low" if row.edit == "gated-low-rank" else "adapter"]
                    nn.init.constant_(module.linear.bias, 1000.0 if value else -1000.0)


def gated(kind: str = "bert") -> tuple[Any, thrifty.Attachment]:
    model = tiny(kind).double()
    at = thrifty.attach(model, thrifty.UniPELT(**{**SMALL, "mlp": False}))
    shake(at)
    return model, at


def tensors(at: thrifty.Attachment, edit: str) -> list[dict[str, Tensor]]:
    edits = [at.edits[row.key] for row in at.plan if row.edit == edit]
    return [{n: t.detach() for n, t in e.named_parameters() if "gate" not in n} for e in edits]


@pytest.mark.parametrize(("gates", "method", "edit"), [
    ({"prefix": 0, "low": 0, "adapter": 0}, thrifty.PrefixTuning(length=3, mlp=False), "zeros"),
    ({"prefix": 1, "low": 0, "adapter": 0}, thrifty.PrefixTuning(length=3, mlp=False), "gated-prefix"),
    ({"prefix": 0, "low": 1, "adapter": 0}, thrifty.LoRA(rank=2, alpha=2), "gated-low-rank"),
    ({"prefix": 0, "low": 0, "adapter": 1}, thrifty.Pfeiffer(rank=4), "gated-bottleneck-before-norm")])
def test_one_gate_open_is_the_method_alone(gates: dict[str, float], method: Any, edit: str) -> None:
    """Shut, the gate of the prefix still leaves keys of zeros, which take their share; those edits are switched off."""
    model, at = gated()
    force(at, **gates)
    alone = edit in ("gated-low-rank", "gated-bottleneck-before-norm")
    if alone:
        at.disable(lambda row: row.edit in ("gate-tap", "gated-prefix"))
    y, held = run(model), tensors(at, edit)
    at.detach()
    base = run(model)
    other = thrifty.attach(model, method)
    with torch.no_grad():
        for i, own in enumerate(other.edits.values()):
            for name, p in own.named_parameters():
                p.copy_(held[i][name]) if held else p.zero_()
    torch.testing.assert_close(run(model), y)
    assert not torch.allclose(y, base, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "t5", "bart"])
@pytest.mark.parametrize("pool", ["masked", "official"])
def test_padding(kind: str, pool: str) -> None:
    model = tiny(kind).double()
    at = thrifty.attach(model, thrifty.UniPELT(**SMALL, pool=pool))
    shake(at)
    more: Any = {"decoder_input_ids": IDS[:, :3]} if kind != "bert" else {}
    y = run(model)
    padded = model(input_ids=F.pad(IDS, (0, 3)), attention_mask=F.pad(MASK, (0, 3)), **more).logits
    assert torch.allclose(padded, y, atol=1e-7) == (pool == "masked")


@pytest.mark.parametrize("norm_first", [False, True])
def test_padding_of_torchs_own_encoder(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x, padding = torch.randn(2, 5, 16), MASK == 0
    at = thrifty.attach(model, thrifty.UniPELT(**SMALL), example={"src": x, "src_key_padding_mask": padding})
    shake(at)
    y = model(x, src_key_padding_mask=padding)
    longer = model(F.pad(x, (0, 0, 0, 2)), src_key_padding_mask=F.pad(padding, (0, 2), value=True))[:, :5]
    torch.testing.assert_close(longer[MASK.bool()], y[MASK.bool()])


def test_of_an_encoder_decoder_the_encoder_takes_part() -> None:
    for kind in ("t5", "bart"):
        model = tiny(kind)
        at = thrifty.attach(model, thrifty.UniPELT(**SMALL))
        assert at.plan and all(".encoder." in f".{row.path}." for row in at.plan)
        shake(at, 0.1)
        written = [model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=4, num_beams=2, use_cache=c)
                   for c in (True, False)]
        assert torch.equal(*written)


@pytest.mark.parametrize("kind", ["bert", "t5", "vit", "llama-class"])
def test_acts_trains_and_leaves(kind: str) -> None:
    model = tiny(kind)
    base = run(model)
    at = thrifty.attach(model, thrifty.UniPELT(**SMALL))
    shake(at, 0.1)
    assert not torch.allclose(run(model), base, atol=1e-4)
    assert all("edits" in n.split(".") for n in frozen_stay(model, at))
    with pytest.raises(CannotMerge):
        at.merge()
    at.detach()
    torch.testing.assert_close(run(model), base, atol=1e-6, rtol=1e-6)


def test_flattened_and_saved(tmp_path: Any) -> None:
    model, method = tiny("bert"), thrifty.UniPELT(**SMALL)
    at = thrifty.attach(model, method)
    shake(at, 0.1)
    y, whole = run(model), count(at)
    at.save(tmp_path / "whole")
    method.finish(at)
    assert torch.equal(run(model), y) and at.context.shared is None
    network = 3 * 16 + (16 * 8 + 8) + (8 * 64 + 64)
    assert count(at) == whole - network + 2 * 2 * 3 * 16
    at.save(tmp_path / "flat")
    for name in ("whole", "flat"):
        fresh = tiny("bert")
        thrifty.load(fresh, tmp_path / name)
        assert torch.equal(run(fresh), y), name


def test_the_scale_of_adapterhub() -> None:
    assert make("unipelt-adapterhub") == thrifty.UniPELT(alpha=2.0)
    scales = [{e.scale for e in thrifty.attach(tiny("bert"), m).edits.values() if isinstance(e, GatedLowRank)}
              for m in (thrifty.UniPELT(hidden=8), make("unipelt-adapterhub", hidden=8))]
    assert scales == [{1.0}, {0.25}]


def test_refusals() -> None:
    for setting, value in (("length", 0), ("rank", 0), ("reduction", 0), ("hidden", 0), ("alpha", -1.0), ("pool", "mean")):
        with pytest.raises(NoSuchSetting, match=setting):
            thrifty.attach(tiny("bert"), thrifty.UniPELT(**{setting: value}))
    for kind in ("llama", "gpt2"):
        with pytest.raises(Unfit, match="would see what comes next"):
            thrifty.attach(tiny(kind), thrifty.UniPELT(**SMALL))
    with pytest.raises(Unfit, match="'decoder.block.*' of T5"):
        thrifty.attach(tiny("t5"), thrifty.UniPELT(**SMALL, where="decoder.block.?"))
    with pytest.raises(NoSuchSite, match="no attention"):
        thrifty.attach(tiny("resnet"), thrifty.UniPELT(**SMALL))
    with pytest.raises(Unfit, match="sdpa"):
        thrifty.attach(tiny("bert", attn_implementation="eager"), thrifty.UniPELT(**SMALL))
    first = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 1)
    with pytest.raises(Unfit, match="batch_first"):
        thrifty.attach(first, thrifty.UniPELT(**SMALL), example=torch.randn(5, 2, 16))
    model, at = gated()
    at.disable(lambda row: row.edit == "gate-tap")
    with pytest.raises(DeadEdit, match="waits for its gate"):
        run(model)
    with pytest.raises(CannotCombine, match="gate"):
        GatedLowRank.combine([], [])
    with pytest.raises(Unfit, match=r"under a mask of \[2, 4\]"):
        Gate(16)(torch.zeros(2, 5, 16), torch.ones(2, 4))

"""(IA)³: a whole T5 of reference arrays, published counts, and what its equations promise."""
from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from backbones import count, frozen_stay, golden, published, run, shake, tiny

import thrifty


def test_reference_arrays_of_a_whole_t5() -> None:
    g = golden("nlp_ia3_t5_gated")
    model = hf.T5ForConditionalGeneration(hf.T5Config(**json.loads(g["hp/config"]))).double().eval()
    base = {k[5:]: v for k, v in g.items() if k.startswith("base/")}
    for stack in ("encoder", "decoder"):
        base[f"{stack}.embed_tokens.weight"] = base["shared.weight"]
    model.load_state_dict(base)
    batch = {k[3:]: g[k] for k in ("in/input_ids", "in/attention_mask", "in/decoder_input_ids")}
    scale = float(g["out/logits"].abs().max())
    torch.testing.assert_close(model(**batch).logits, g["out/base_logits"], atol=1e-5 * scale, rtol=0)
    at = thrifty.attach(model, thrifty.IA3())
    names = {key: key.partition("#")[0].replace(".wo", ".wi_1") for key in at.edits}  # the gated product is scaled at its exit
    assert sorted(names.values()) == sorted(k[4:] for k in g if k.startswith("ia3/"))
    with torch.no_grad():
        for key, name in names.items():
            at.edits[key].l.copy_(g[f"ia3/{name}"])
    logits = model(**batch).logits
    torch.testing.assert_close(logits, g["out/logits"], atol=1e-5 * scale, rtol=0)
    (logits * g["in/probe"]).sum().backward()
    for key, name in names.items():
        wanted = g[f"grad/{name}"].flatten()
        torch.testing.assert_close(at.edits[key].l.grad, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0)


@pytest.mark.parametrize(("backbone", "wanted"), [("bert-base", 55_296), ("t5-base", 129_024), ("llama-7b", 614_400)])
def test_counts(backbone: str, wanted: int) -> None:
    assert count(thrifty.attach(published(backbone), thrifty.IA3())) == wanted


def test_counts_of_t0() -> None:
    for (width, hidden, heads), wanted in (((2048, 5120, 32), 540_672), ((4096, 10240, 64), 1_081_344)):
        config = hf.T5Config(d_model=width, d_ff=hidden, num_heads=heads, num_layers=24, feed_forward_proj="gated-gelu")
        with torch.device("meta"):
            model = hf.T5ForConditionalGeneration(config)
        assert count(thrifty.attach(model, thrifty.IA3())) == wanted


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "bart", "vit"])
def test_starts_as_the_base_and_merges(kind: str) -> None:
    model = tiny(kind).double()
    base = run(model) if kind != "vit" else run(model, pixel_values=torch.ones(1, 3, 16, 16).double())
    at = thrifty.attach(model, thrifty.IA3())
    again = {} if kind != "vit" else {"pixel_values": torch.ones(1, 3, 16, 16).double()}
    with at.disabled():
        frozen = run(model, **again)  # torch multiplies by a frozen weight in another order, so that T5's last bit can differ
    assert torch.equal(run(model, **again), frozen)
    torch.testing.assert_close(frozen, base)
    shake(at)
    y = run(model, **again)
    assert not torch.allclose(y, base)
    at.merge()
    torch.testing.assert_close(run(model, **again), y, atol=1e-6, rtol=1e-6)  # T5 keeps parts of itself in float32
    at.detach()
    assert torch.equal(run(model, **again), base)


def test_recomputed_by_hand() -> None:
    model = tiny("bert").double()
    block = model.bert.encoder.layer[0]
    at = thrifty.attach(model, thrifty.IA3(where="attn.k[0]|attn.v[0]|mlp.out[0]"))
    shake(at)
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    k, v, ff = (next(e.l for n, e in at.edits.items() if f"{w}#" in n) for w in ("key", "value", "output.dense"))
    y = block(x)
    y = y if isinstance(y, torch.Tensor) else y[0]
    at.disable()
    s = block.attention.self
    heads = lambda t: t.view(1, 5, 2, 8).transpose(1, 2)  # noqa: E731
    Q, K, V = heads(s.query(x)), heads(k * s.key(x)), heads(v * s.value(x))
    h = (Q @ K.transpose(-1, -2) / 8**0.5).softmax(-1) @ V
    a = block.attention.output.LayerNorm(block.attention.output.dense(h.transpose(1, 2).reshape(1, 5, 16)) + x)
    expected = block.output.LayerNorm(block.output.dense(ff * F.gelu(block.intermediate.dense(a))) + a)
    torch.testing.assert_close(y, expected)


def test_values_scaled_by_zero_leave_the_output_bias() -> None:
    model = tiny("bert")
    at = thrifty.attach(model, thrifty.IA3(where="attn.v[0]"))
    (edit,) = at.edits.values()
    torch.nn.init.zeros_(edit.l)
    attention = model.bert.encoder.layer[0].attention
    context = attention.self(torch.randn(1, 5, 16))[0]
    assert not context.any()
    torch.testing.assert_close(attention.output.dense(context), attention.output.dense.bias.expand(1, 5, 16))


def test_a_constant_on_a_head_scales_its_logits() -> None:
    model = tiny("bert").double()
    attention = model.bert.encoder.layer[0].attention.self
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    at = thrifty.attach(model, thrifty.IA3(where="attn.k[0]"))
    (edit,) = at.edits.values()
    torch.nn.init.constant_(edit.l, 1.7)
    y = attention(x)[0]
    at.disable()
    with torch.no_grad():
        attention.query.weight.mul_(1.7), attention.query.bias.mul_(1.7)
    torch.testing.assert_close(attention(x)[0], y)


def test_gradient_and_bias_by_hand() -> None:
    layer = torch.nn.Linear(5, 3).double()
    model = torch.nn.Sequential(layer)
    at = thrifty.attach(model, thrifty.IA3(where="0"))
    shake(at)
    x, probe = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    y = model(x)
    (y * probe).sum().backward()
    (edit,) = at.edits.values()
    torch.testing.assert_close(edit.l.grad, (probe * (x @ layer.weight.T + layer.bias)).sum(0))
    expected = edit.l.detach() * layer.bias.detach()
    at.merge()
    torch.testing.assert_close(layer.bias.detach(), expected)
    torch.testing.assert_close(model(x), y)


def test_only_the_vectors_move_and_nothing_decays_them() -> None:
    model = tiny("t5")
    method = thrifty.IA3()
    at = thrifty.attach(model, method)
    assert all(n.endswith(".l") for n in frozen_stay(model, at))
    assert {g["weight_decay"] for g in method.groups(at, 1e-3, 0.1)} == {0.0}


def test_a_convolution_is_scaled_by_channel() -> None:
    conv = torch.nn.Conv2d(4, 6, 3)
    model, x = torch.nn.Sequential(conv), torch.randn(2, 4, 5, 5)
    at = thrifty.attach(model, thrifty.IA3(where="conv"), example=x)
    shake(at)
    (edit,) = at.edits.values()
    y = model(x)
    torch.testing.assert_close(y, F.conv2d(x, conv.weight, conv.bias) * edit.l.view(6, 1, 1))
    at.merge()
    torch.testing.assert_close(model(x), y, atol=1e-5, rtol=1e-5)

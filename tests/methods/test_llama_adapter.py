"""LLaMA-Adapter: reference arrays, published counts, its gate and its prompts, and what it sees."""
from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from backbones import IDS, MASK, count, golden, published, run, shake, tiny
from torch import Tensor

import thrifty
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.methods.llama_adapter import GatedPrompt
from thrifty.methods.prompts.sight import seeing

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
import tiny_folders  # noqa: E402

META = {"input_ids": torch.ones(1, 4, dtype=torch.long, device="meta")}
PICTURES = torch.randn(2, 6, generator=torch.Generator().manual_seed(3))


def halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of a projection for rotary pairs (i, i + d/2), as transformers has them, from those for pairs (2i, 2i + 1)."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def reference() -> tuple[Any, dict[str, Any]]:
    g = golden("vlm_llama_adapter_v1")
    heads = g["hp/heads"]
    config = hf.LlamaConfig(vocab_size=30, hidden_size=g["hp/dim"], num_hidden_layers=g["hp/layers"], num_attention_heads=heads,
                            intermediate_size=48, rms_norm_eps=g["hp/norm_eps"], rope_theta=g["hp/rope_theta"],
                            tie_word_embeddings=False)
    names = {"attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
             "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
             "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    state = {"model.embed_tokens.weight": g["w/tok_embeddings.weight"], "model.norm.weight": g["w/norm.weight"],
             "lm_head.weight": g["w/output.weight"]}
    for i in range(g["hp/layers"]):
        for theirs, ours in names.items():
            weight = g[f"w/layers.{i}.{theirs}.weight"]
            turned = theirs in ("attention.wq", "attention.wk")
            state[f"model.layers.{i}.{ours}.weight"] = halves(weight, heads) if turned else weight
    model = hf.LlamaForCausalLM(config).eval()
    model.load_state_dict(state)
    return model, g


def test_reference_arrays() -> None:
    model, g = reference()
    x = g["in/attention_input"]
    layer, places = model.model.layers[1].self_attn, torch.arange(x.shape[1])[None]
    rotary = model.model.rotary_emb(x, places)
    torch.testing.assert_close(layer(x, rotary)[0], g["out/attention_without_prompt"], atol=1e-5, rtol=0)
    at = thrifty.attach(model, thrifty.LLaMAAdapter(length=g["hp/adapter_len"], layers=g["hp/adapter_layers"]))
    edits = list(at.edits.values())
    assert [row.depth for row in at.plan] == [1, 2]
    with torch.no_grad():
        for i, (edit, prompt) in enumerate(zip(edits, g["w/adapter_query.weight"].split(g["hp/adapter_len"]), strict=True)):
            edit.prompt.copy_(prompt)
            edit.gate.copy_(g[f"w/layers.{i + 1}.attention.gate"][0])
    torch.testing.assert_close(layer(x, rotary)[0], g["out/attention_with_prompt"], atol=1e-5, rtol=0)
    logits = model(input_ids=g["in/tokens"]).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), g["in/labels"][:, 1:].flatten(), ignore_index=0)
    assert loss.item() == pytest.approx(g["out/loss"], abs=1e-5)
    loss.backward()
    torch.testing.assert_close(torch.cat([e.prompt.grad for e in edits]), g["grad/adapter_query.weight"], atol=1e-5, rtol=0)
    for i, edit in enumerate(edits):
        torch.testing.assert_close(edit.gate.grad[None], g[f"grad/layers.{i + 1}.attention.gate"], atol=1e-5, rtol=0)


def test_counts() -> None:
    at = thrifty.attach(published("llama-7b"), thrifty.LLaMAAdapter(), example=META)
    assert count(at) == 30 * 10 * 4096 + 30 * 32 == 1_229_760
    assert {row.depth for row in at.plan} == set(range(2, 32))
    seeing_too = thrifty.attach(published("llama-7b"), thrifty.LLaMAAdapter(features=768), example=META)
    assert count(seeing_too) == 1_229_760 + 768 * 4096 + 4096


def test_zero_gates_are_the_base_and_train_first() -> None:
    model = tiny("llama")
    base = run(model)
    at = thrifty.attach(model, thrifty.LLaMAAdapter(length=3))
    assert torch.equal(run(model), base)
    run(model).square().mean().backward()
    for edit in at.edits.values():
        assert not edit.prompt.grad.any() and edit.gate.grad.all()


@pytest.mark.parametrize("kind", ["llama", "t5", "vit", "gpt2"])
def test_two_softmaxes_by_hand(kind: str) -> None:
    """The last layer's prompt, from the q, k, v that its attention is called with; rows of the weights sum to 1 + tanh(g)."""
    model = tiny(kind).double()
    at = thrifty.attach(model, thrifty.LLaMAAdapter(length=3, layers=1))
    shake(at)
    calls: list[tuple[Tensor, ...]] = []
    edit = list(at.edits.values())[-1]
    given = edit.attended
    edit.mode.after = lambda y, q, scale: calls.append((y, q, torch.tensor(scale), given(y, q, scale))) or calls[-1][-1]
    run(model)
    y, q, scale, out = calls[-1]
    prompt = edit.prompt
    k, v = (F.linear(prompt, site.weight, site.bias).unflatten(-1, (-1, edit.dim)).transpose(0, 1) for site in (edit.k, edit.v))
    k, v = (t.expand(q.shape[1], -1, -1) for t in (k, v))  # grouped queries: one key head here
    weights = torch.tanh(edit.gate) * torch.einsum("bhqd,hkd->bhqk", scale * q, k).softmax(-1)
    torch.testing.assert_close(weights.sum(-1), torch.tanh(edit.gate)[..., 0].expand_as(weights.sum(-1)))
    torch.testing.assert_close(out, y + torch.einsum("bhqk,hkd->bhqd", weights, v))


def test_of_the_prompt_and_the_gate() -> None:
    model = tiny("llama").double()
    at = thrifty.attach(model, thrifty.LLaMAAdapter(length=4, layers=1))
    shake(at)
    (edit,) = at.edits.values()
    attention: Any = edit.site.module
    seen: list[Tensor] = []
    attention.register_forward_hook(lambda m, a, out: seen.append(out[0].detach()))
    before = edit.prompt.detach().clone()

    def answer(prompt: Tensor, gate: float = 0.7) -> Tensor:
        with torch.no_grad():
            edit.prompt.data = prompt
            edit.gate.fill_(torch.tensor(gate).atanh() if gate else 0.0)
            run(model)
        return seen[-1]

    y = answer(before)
    torch.testing.assert_close(answer(before[[2, 0, 3, 1]]), y)
    torch.testing.assert_close(answer(torch.cat([before, before, before])), y)
    torch.testing.assert_close(answer(before[:1].expand(5, -1).contiguous()), answer(before[:1].contiguous()))
    nothing, half = answer(before, 0.0), answer(before, 0.35)
    torch.testing.assert_close(half, (y + nothing) / 2)
    assert not torch.allclose(y, nothing)


def test_writes_with_and_without_a_cache() -> None:
    model = tiny("llama")
    at = thrifty.attach(model, thrifty.LLaMAAdapter(length=3, features=6))
    shake(at, 0.5)
    with seeing(model, PICTURES):
        written = [model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=5, num_beams=2, use_cache=c, pad_token_id=0)
                   for c in (True, False)]
    assert torch.equal(*written)


def test_pictures() -> None:
    model = tiny("llama").double()
    base = run(model)
    at = thrifty.attach(model, thrifty.LLaMAAdapter(length=3, features=6))
    shown = PICTURES.double()
    assert torch.equal(run(model, image_features=shown), base)  # gates of zero: whatever the picture
    shake(at)
    text, both = run(model), run(model, image_features=shown)
    with seeing(model, shown):
        assert torch.equal(run(model), both)
    assert torch.equal(run(model), text) and not torch.allclose(text, both)
    assert torch.equal(run(model, image_features=shown[:, None]), both)
    other = run(model, image_features=torch.stack([shown[0], -shown[1]]))
    torch.testing.assert_close(other[0], both[0])
    assert not torch.allclose(other[1], both[1])
    root, *layers = at.edits.values()
    with torch.no_grad():  # the same picture for all rows is a change of the prompts
        added = root.project(shown[:1])
        for edit in layers:
            edit.prompt.add_(added)
    torch.testing.assert_close(run(model), run_minus(model, layers, added, shown[:1].expand(2, -1)))


def test_two_that_see() -> None:
    model = tiny("llama")
    for name in ("one", "two"):
        shake(thrifty.attach(model, thrifty.LLaMAAdapter(length=3, features=6), name=name))
    y = run(model, image_features=PICTURES)
    for at in thrifty.attachments(model).values():
        with torch.no_grad():
            root = next(iter(at.edits.values()))
            root.project.weight.neg_()
            assert not torch.allclose(run(model, image_features=PICTURES), y)
            root.project.weight.neg_()


def run_minus(model: Any, layers: list[GatedPrompt], added: Tensor, shown: Tensor) -> Tensor:
    with torch.no_grad():
        for edit in layers:
            edit.prompt.sub_(added)
    return run(model, image_features=shown)


def test_saved(tmp_path: Path) -> None:
    model = tiny("llama")
    at = thrifty.attach(model, thrifty.LLaMAAdapter(length=3, features=6))
    shake(at)
    at.save(tmp_path)
    fresh = tiny("llama")
    thrifty.load(fresh, tmp_path)
    assert torch.equal(run(fresh, image_features=PICTURES), run(model, image_features=PICTURES))


def test_tune_on_text_alone(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    drawn, words = random.Random(1), ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay"]
    texts = [" ".join([*drawn.choices(words, k=5), words[i % 10], words[i // 10]]) for i in range(40)]
    rows = [{"source": text, "target": " ".join(reversed(text.split()))} for text in texts]
    data = {"train": rows[:24], "validation": rows[24:32], "test": rows[32:]}
    out = thrifty.tune(str(tiny_folders.llama(tmp_path / "model")), data, "llama-adapter", tmp_path / "run", epochs=1, batch=8,
                       progress=False, baselines=False, max_new_tokens=4)
    assert out.metrics["method"] == "llama-adapter"


def test_refusals() -> None:
    for setting, value in (("layers", 0), ("length", 0), ("features", -1)):
        with pytest.raises(NoSuchSetting, match=setting):
            thrifty.attach(tiny("llama"), thrifty.LLaMAAdapter(**{setting: value}))
    with pytest.raises(Unfit, match="sdpa"):
        thrifty.attach(tiny("llama", attn_implementation="eager"), thrifty.LLaMAAdapter())
    model = tiny("llama")
    with pytest.raises(Unfit, match="looks at pictures"), seeing(model, PICTURES):
        pass
    thrifty.attach(model, thrifty.LLaMAAdapter(length=3, features=6))
    with pytest.raises(Unfit, match=r"\[batch, 6\].*not \[2, 5\]"):
        run(model, image_features=PICTURES[:, :5])
    with pytest.raises(Unfit, match="3 pictures were handed over beside 2 texts"):
        run(model, image_features=torch.cat([PICTURES, PICTURES[:1]]))

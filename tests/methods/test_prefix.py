"""Prefix tuning: reference arrays, published counts, and what its equations promise."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import IDS, MASK, count, frozen_stay, golden, published, run, shake, tiny
from torch import Tensor, nn

import thrifty
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.methods import make
from thrifty.methods.prefix import Prefix, flatten


class Attention(nn.Module):
    """Self-attention of the reference arrays: heads concatenated, no output projection."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


def test_reference_arrays() -> None:
    g = golden("nlp_prefix_attention")
    model = nn.Sequential()
    model.attn = Attention(12, g["hp/heads"]).double()
    model.forward = lambda *a: model.attn(*a)
    for name in ("query", "key", "value"):
        getattr(model.attn, name).load_state_dict({k: g[f"w/{name}_{k}"] for k in ("weight", "bias")})
    batch = (g["in/hidden"], g["in/additive_mask"])
    torch.testing.assert_close(model(*batch), g["out/context_without_prefix"], atol=1e-10, rtol=0)
    at = thrifty.attach(model, thrifty.PrefixTuning(length=g["hp/prefix_length"], mlp=False, where="attn"), example=batch)
    (edit,) = at.edits.values()
    with torch.no_grad():
        edit.k.copy_(g["in/prefix_key"][0]), edit.v.copy_(g["in/prefix_value"][0])
    y = model(*batch)
    torch.testing.assert_close(y, g["out/context"], atol=1e-10, rtol=0)
    (y * g["in/probe"]).sum().backward()
    torch.testing.assert_close(edit.k.grad, g["grad/prefix_key_per_row"].sum(0), atol=1e-10, rtol=0)
    torch.testing.assert_close(edit.v.grad, g["grad/prefix_value_per_row"].sum(0), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("backbone", "length", "hidden", "training", "deployed"), [
    ("bert-base", 10, 512, 9_857_024, 184_320), ("bert-base", 10, 800, 15_386_912, 184_320),
    ("bert-base", 100, 512, None, 1_843_200), ("bert-base", 20, 512, None, 368_640),
    ("roberta-large", 128, 512, None, 6_291_456), ("gpt2-medium", 5, 512, 25_744_896, 245_760),
    ("llama-7b", 30, 512, None, 7_864_320)])
def test_counts(backbone: str, length: int, hidden: int, training: int | None, deployed: int) -> None:
    example = {"input_ids": torch.ones(1, 4, dtype=torch.long, device="meta")}
    if training is not None:
        at = thrifty.attach(published(backbone), thrifty.PrefixTuning(length=length, hidden=hidden), example=example)
        assert count(at) == training
        flatten(at)
        assert count(at) == deployed
    at = thrifty.attach(published(backbone), thrifty.PrefixTuning(length=length, mlp=False), example=example)
    assert count(at) == deployed


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "bart", "vit"])
@pytest.mark.parametrize("mlp", [True, False])
def test_acts_trains_and_leaves_on_every_family(kind: str, mlp: bool) -> None:
    model = tiny(kind)
    at = thrifty.attach(model, thrifty.PrefixTuning(length=3, mlp=mlp, hidden=8))
    with at.disabled():
        base = run(model)
    assert not torch.allclose(run(model), base, atol=1e-4)
    attentions = {"t5": 6, "bart": 6}.get(kind, 2)
    assert len(at.edits) == attentions
    assert all("edits" in n.split(".") for n in frozen_stay(model, at))
    run(model).square().sum().backward()
    assert all(p.grad is not None for p in at.parameters())
    at.detach()
    torch.testing.assert_close(run(model), base, atol=1e-6, rtol=1e-6)


def test_encoder_decoders_have_three_independent_networks() -> None:
    at = thrifty.attach(tiny("bart"), thrifty.PrefixTuning(length=3, hidden=8))
    network = at.context.shared
    assert len(network.tables) == 3 and len({id(p) for p in network.parameters()}) == 15
    kinds = {(row.stack, row.role): row.numbers["kind"] for row in at.plan}
    assert sorted(kinds.values()) == [0, 1, 2]
    assert len(thrifty.attach(tiny("bert"), thrifty.PrefixTuning(length=3, hidden=8)).context.shared.tables) == 1


def test_the_network_by_hand() -> None:
    at = thrifty.attach(tiny("bert"), thrifty.PrefixTuning(length=3, hidden=8))
    network = at.context.shared
    Z = torch.tanh(network.tables[0].weight @ network.first[0].weight.T + network.first[0].bias)
    Z = (Z @ network.second[0].weight.T + network.second[0].bias).view(3, 4, 2, 8)  # [P, 2 L, heads, dim]
    for layer, edit in enumerate(at.edits.values()):
        k, v = edit.pair()
        torch.testing.assert_close(k, Z[:, 2 * layer].transpose(0, 1))
        torch.testing.assert_close(v, Z[:, 2 * layer + 1].transpose(0, 1))


def test_flattening_changes_nothing_but_the_size(tmp_path: Any) -> None:
    model = tiny("t5")
    method = thrifty.PrefixTuning(length=3, hidden=8)
    at = thrifty.attach(model, method)
    shake(at, 0.1)
    y = run(model)
    method.finish(at)
    assert torch.equal(run(model), y)
    assert at.context.shared is None and not any("shared" in n and "edits" in n for n in model.state_dict())
    assert count(at) == 6 * 2 * 3 * 16
    at.save(tmp_path / "flat")
    fresh = tiny("t5")
    loaded = thrifty.load(fresh, tmp_path / "flat")
    assert torch.equal(run(fresh), y) and count(loaded) == count(at)
    for _ in range(4):  # it still trains
        run(model).square().mean().backward()
    assert all(p.grad is not None for p in at.parameters())
    at.detach()
    assert not any("edits" in n for n in model.state_dict())


def test_saved_with_its_network(tmp_path: Any) -> None:
    model = tiny("bert")
    at = thrifty.attach(model, thrifty.PrefixTuning(length=3, hidden=8))
    shake(at, 0.1)
    at.save(tmp_path / "whole")
    fresh = tiny("bert")
    thrifty.load(fresh, tmp_path / "whole")
    assert torch.equal(run(fresh), run(model))


def one_attention(length: int) -> tuple[nn.Module, thrifty.Attachment, Prefix, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.attn = Attention(12, 3).double()
    model.forward = lambda *a: model.attn(*a)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)[:, None, None]
    at = thrifty.attach(model, thrifty.PrefixTuning(length=max(length, 1), mlp=False, where="attn"), example=x)
    (edit,) = at.edits.values()
    if not length:
        edit.keep(edit.k[:, :0].detach(), edit.v[:, :0].detach())
    return model, at, edit, x, mask


def test_a_prefix_is_gated_attention() -> None:
    """He et al., equation U1: (1 - g) Attn(Q, K, V) + g Attn(Q, P_k, P_v), for any mask."""
    model, at, edit, x, mask = one_attention(4)
    y = model(x, mask)
    at.disable()
    q, k, v = (getattr(model.attn, n)(x).unflatten(-1, (3, 4)).transpose(1, 2) for n in ("query", "key", "value"))
    ours, theirs = q @ edit.k.transpose(-1, -2) / 2, (q @ k.transpose(-1, -2) / 2).masked_fill(~mask, -torch.inf)
    total = ours.exp().sum(-1, keepdim=True)
    gate = total / (total + theirs.exp().sum(-1, keepdim=True))
    expected = (1 - gate) * (theirs.softmax(-1) @ v) + gate * (ours.softmax(-1) @ edit.v)
    torch.testing.assert_close(y, expected.transpose(1, 2).flatten(2), atol=1e-12, rtol=1e-9)


def test_order_padding_and_the_empty_prefix() -> None:
    model, at, edit, x, mask = one_attention(4)
    y = model(x, mask)
    with torch.no_grad():
        order = torch.tensor([2, 0, 3, 1])
        edit.k.copy_(edit.k[:, order]), edit.v.copy_(edit.v[:, order])
    torch.testing.assert_close(model(x, mask), y, atol=1e-12, rtol=1e-9)
    longer = model(F.pad(x, (0, 0, 0, 2)), F.pad(mask, (0, 2)))[:, :5]
    torch.testing.assert_close(longer, y, atol=1e-12, rtol=1e-9)
    torch.nn.init.zeros_(edit.k), torch.nn.init.zeros_(edit.v)
    at_zero = model(x, mask)
    at.disable()
    assert not torch.allclose(at_zero, model(x, mask))  # zeros take softmax mass
    model, at, edit, x, mask = one_attention(0)
    empty = model(x, mask)
    at.disable()
    torch.testing.assert_close(empty, model(x, mask), atol=1e-12, rtol=1e-9)


def test_grouped_queries_repeat_the_prefix() -> None:
    model = tiny("llama")  # 2 heads, 1 key-value head
    at = thrifty.attach(model, thrifty.PrefixTuning(length=3, mlp=False))
    assert all(e.k.shape == (1, 3, 8) for e in at.edits.values())
    assert run(model).isfinite().all()
    ungrouped = thrifty.attach(tiny("llama", num_key_value_heads=2), thrifty.PrefixTuning(length=3, mlp=False))
    assert all(e.k.shape == (2, 3, 8) for e in ungrouped.edits.values())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5", "bart"])
def test_generation_with_a_cache_is_generation_without(kind: str) -> None:
    model = tiny(kind)
    at = thrifty.attach(model, thrifty.PrefixTuning(length=3, mlp=False))
    settings: Any = {"input_ids": IDS[:1], "attention_mask": MASK[:1], "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with_cache, without = (model.generate(**settings, use_cache=c, num_beams=2) for c in (True, False))
    assert torch.equal(with_cache, without)
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    logits = [model.generate(**settings, use_cache=c).logits for c in (True, False)]
    for a, b in zip(*logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    at.detach()


def test_presets_and_refusals() -> None:
    assert make("p-tuning-v2", length=5) == thrifty.PrefixTuning(length=5, mlp=False, dropout=0.1, shift=True)
    assert make("p-tuning-v2").start_rate() == 5e-3 and make("prefix").start_rate() == 1e-4
    for setting, value in (("length", 0), ("hidden", 0), ("dropout", 1.0)):
        with pytest.raises(NoSuchSetting, match=setting):
            thrifty.attach(tiny("bert"), thrifty.PrefixTuning(**{setting: value}))
    with pytest.raises(Unfit, match="sdpa"):
        thrifty.attach(tiny("bert", attn_implementation="eager"), thrifty.PrefixTuning())


def test_stock_attention_of_torch() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    x = torch.randn(2, 5, 16)
    base = model(x)
    at = thrifty.attach(model, thrifty.PrefixTuning(length=3, mlp=False), example=x)
    assert all(e.k.shape == (2, 3, 8) for e in at.edits.values())
    assert not torch.allclose(model(x), base, atol=1e-4)
    at.detach()
    torch.testing.assert_close(model(x), base)


# -- P-tuning v2: positions behind the prefix, the head beside it, the pooler frozen ----------------------------------------


def quiet(kind: str, **config: Any) -> Any:
    """A small model in float64 whose own dropout is off, so that only that of the prefix shows."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0} if "bert" in kind else {}
    return tiny(kind, **off, **config).double()


def test_it_is_a_prefix_in_the_models_own_cache() -> None:
    """The reference goes another way: GPT-2 is handed the keys and values as a cache, and moves its positions itself."""
    from transformers import DynamicCache

    model = quiet("gpt2")
    at = thrifty.attach(model, make("p-tuning-v2", length=4))
    pairs = [e.pair() for e in at.edits.values() if isinstance(e, Prefix)]
    y = run(model)
    at.disable()
    cache = DynamicCache()
    for layer, (k, v) in enumerate(pairs):
        cache.update(k.expand(2, -1, -1, -1), v.expand(2, -1, -1, -1), layer)
    mask = F.pad(MASK, (4, 0), value=1)
    expected = model(input_ids=IDS, attention_mask=mask, past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(y[MASK.bool()], expected[MASK.bool()])


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_positions_begin_behind_the_prefix(kind: str) -> None:
    model = quiet(kind)
    still = thrifty.attach(model, thrifty.PrefixTuning(length=4, mlp=False))
    state = still.state()
    first = 0 if kind == "bert" else 2
    expected = model(input_ids=IDS, attention_mask=MASK, position_ids=torch.arange(first + 4, first + 9)[None]).logits
    plain = run(model)
    still.detach()
    at = thrifty.attach(model, make("p-tuning-v2", length=4))
    at.load_state(state)
    ids = IDS.clone()
    ids[1, 3:] = model.config.pad_token_id
    torch.testing.assert_close(model(input_ids=ids, attention_mask=MASK).logits, expected)
    assert not torch.allclose(expected, plain, atol=1e-4)


def test_flattened_prefix_tuning_with_the_same_tensors() -> None:
    model = quiet("bert")
    method = thrifty.PrefixTuning(length=4, hidden=8, shift=True)
    at = thrifty.attach(model, method)
    shake(at, 0.1)
    method.finish(at)
    y, state = run(model), at.state()
    at.detach()
    thrifty.attach(model, make("p-tuning-v2", length=4)).load_state(state)
    assert torch.equal(run(model), y)


def test_relative_and_rotary_positions_know_no_difference() -> None:
    for kind in ("t5", "llama"):
        at = thrifty.attach(tiny(kind), make("p-tuning-v2", length=3))
        assert all(isinstance(e, Prefix) for e in at.edits.values())


def test_the_head_trains_and_the_pooler_does_not() -> None:
    model = tiny("bert")
    before = {n: p.clone() for n, p in model.named_parameters()}
    at = thrifty.attach(model, make("p-tuning-v2", length=3), also_train="head")
    optimiser = torch.optim.AdamW(at.parameters(), lr=0.05)
    for _ in range(3):
        run(model).square().mean().backward()
        optimiser.step()
    for name, p in model.named_parameters():
        if "edits" not in name.split("."):
            assert torch.equal(p, before[name]) != name.startswith("classifier"), name
            assert (p.grad is None) != name.startswith("classifier"), name
    network = thrifty.attach(tiny("bert"), make("p-tuning-v2", mlp=True, length=3, hidden=512))
    assert count(network) == 3 * 16 + (16 * 512 + 512) + (512 * 64 + 64)


def test_dropout_falls_on_the_keys_and_values() -> None:
    model = quiet("bert")
    at = thrifty.attach(model, make("p-tuning-v2", length=3, dropout=0.5))
    assert torch.equal(run(model), run(model))
    model.train()
    assert not torch.equal(run(model), run(model))
    model.eval()
    assert all(-4.5 < float(e.k.mean()) < 4.5 and 0.5 < float(e.k.std()) < 1.5
               for e in at.edits.values() if isinstance(e, Prefix))  # N(0, 1)


def test_a_prefix_longer_than_the_table_of_positions() -> None:
    for kind in ("gpt2", "roberta"):  # RoBERTa has 66 rows, two of them for padding
        with pytest.raises(Unfit, match=r"a prefix of 64 leaves no room in the 64 positions"):
            thrifty.attach(tiny(kind), make("p-tuning-v2", length=64))
    model = tiny("gpt2")
    thrifty.attach(model, make("p-tuning-v2", length=10))
    assert model(input_ids=torch.full((1, 54), 5)).logits.isfinite().all()
    with pytest.raises(Unfit, match="position 64 behind a prefix of 10, and 'transformer.wpe' ends at 63"):
        model(input_ids=torch.full((1, 55), 5))
    with pytest.raises(Unfit, match="BartLearnedPositionalEmbedding.*shift=False"):
        thrifty.attach(tiny("bart"), make("p-tuning-v2"))

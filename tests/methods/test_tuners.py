"""U-Tuning and Res-Tuning: the equality with prefixes and prompts, every operation by hand, counts, mixtures, images."""
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import IDS, MASK, count, frozen_stay, published, run, shake, tiny
from torch import Tensor, nn

import thrifty
from thrifty.core.errors import DeadEdit, NoSuchSetting, NoSuchSite, Unfit
from thrifty.methods.branches.tuners import AdapterTuner, AttentionTuner, FollowingTuner, LookupTuner

EVERYTHING = {"mha": "adapter+prefix+prompt", "ffn": "prompt+adapter+prefix", "block": "prefix+prompt+adapter"}
SMALL: dict[str, Any] = {"length": 3, "rank": 4}


def edits(at: thrifty.Attachment, kind: type[Any]) -> list[Any]:
    return [e for e in at.edits.values() if isinstance(e, kind)]


def attention(kind: str) -> tuple[Any, Any]:
    """A small model in float64 and its first attention, which concatenates heads and has no output projection of its own."""
    model = tiny(kind).double()
    return model, model.bert.encoder.layer[0].attention.self if kind == "bert" else None


def answer(module: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    return module(x, mask)[0]


def gate(module: Any, x: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    """The softmax's mass on ``keys`` [heads, P, dim], per head and query."""
    q, k = (getattr(module, n)(x).unflatten(-1, (2, 8)).transpose(1, 2) for n in ("query", "key"))
    ours, theirs = (q @ keys.transpose(-1, -2) / 8**0.5).exp().sum(-1), (q @ k.transpose(-1, -2) / 8**0.5).exp()
    theirs = theirs if mask is None else theirs.masked_fill(~mask, 0.0)
    return (ours / (ours + theirs.sum(-1)))[..., None]


def by_head(y: Tensor) -> Tensor:
    return y.unflatten(-1, (2, 8)).transpose(1, 2)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("method", [thrifty.UTuning, thrifty.ResTuning])
def test_a_prefix_with_its_gate_restored_is_prefix_tuning(method: Any, masked: bool) -> None:
    model, module = attention("bert")
    x, mask = torch.randn(2, 5, 16, dtype=torch.float64), MASK[:, None, None].bool() if masked else None
    base = by_head(answer(module, x, mask))
    at = thrifty.attach(model, method(mha="prefix", ffn="", length=3))
    shake(at)
    tuner = edits(at, AttentionTuner)[0]
    tuned = by_head(answer(module, x, mask)) - base
    keys, values = (t.detach().clone() for t in tuner.memory())
    at.detach()
    other = thrifty.attach(model, thrifty.PrefixTuning(length=3, mlp=False))
    prefix = next(iter(other.edits.values()))
    with torch.no_grad():
        prefix.k.copy_(keys), prefix.v.copy_(values)
    share = gate(module, x, keys, mask)
    torch.testing.assert_close((1 - share) * base + share * tuned, by_head(answer(module, x, mask)))


@pytest.mark.parametrize("bias", [False, True])
def test_a_prompt_with_its_gate_restored_is_prompt_tuning_on_the_rows_of_the_text(bias: bool) -> None:
    model, module = attention("bert")
    if not bias:
        nn.init.zeros_(module.key.bias), nn.init.zeros_(module.value.bias)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    base = by_head(answer(module, x))
    at = thrifty.attach(model, thrifty.UTuning(mha="prompt", ffn="", length=3, bias=bias))
    shake(at)
    memory = edits(at, AttentionTuner)[0].memory
    tuned = by_head(answer(module, x)) - base
    prompt, keys = memory.prompt.detach(), memory()[0]
    at.detach()
    whole = answer(module, torch.cat([prompt.expand(2, -1, -1), x], 1))[:, 3:]
    share = gate(module, x, keys, None)
    torch.testing.assert_close((1 - share) * base + share * tuned, by_head(whole))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "bart", "vit"])
def test_it_starts_as_the_base_and_prompts_near_it(kind: str) -> None:
    model = tiny(kind)
    base = run(model)
    for mixture in ({}, {"mha": "adapter+prefix", "ffn": "prefix+adapter", "block": "adapter+prefix"}):
        at = thrifty.attach(model, thrifty.UTuning(**SMALL, **mixture))
        torch.testing.assert_close(run(model), base, atol=1e-6, rtol=1e-6)
        shake(at)
        assert not torch.allclose(run(model), base, atol=1e-4)
        at.detach()
    at = thrifty.attach(model, thrifty.UTuning(**SMALL, mha="prompt", ffn="", block="prompt"))
    moved = float((run(model) - base).abs().max() / base.abs().max())
    assert 0 < moved < 0.3
    at.detach()


def test_every_operation_by_hand() -> None:
    """A layer of BERT, with an adapter and a lookup beside each of its operations."""
    model, module = attention("bert")
    at = thrifty.attach(model, thrifty.UTuning(**SMALL, mha="adapter+prefix", ffn="adapter+prompt", block="adapter+prefix"))
    shake(at)
    states = model.bert(IDS, MASK, output_hidden_states=True).hidden_states
    x, layer = states[0], model.bert.encoder.layer[0]
    by_kind = {kind: [e for e in edits(at, kind) if ".layer.0." in e.site.path + "."] for kind in (AdapterTuner, LookupTuner)}
    adapters, (lookup, whole) = by_kind[AdapterTuner], by_kind[LookupTuner]
    inside = edits(at, AttentionTuner)[0].memory()
    at.disable()

    def adapter(i: int, h: Tensor) -> Tensor:
        return adapters[i].up(torch.relu(adapters[i].down(h)))

    def found(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q = by_head(q)
        return ((q @ keys.transpose(-1, -2) / 8**0.5).softmax(-1) @ values).transpose(1, 2).flatten(2)

    out = layer.attention.output.dense
    heads = answer(module, x, MASK[:, None, None].bool()) + found(module.query(x), *inside)
    a = layer.attention.output.LayerNorm(x + out(heads) + adapter(0, x))
    prompt = lookup.memory.prompt
    keys, values = (by_head((prompt @ getattr(module, n).weight.T)[None])[0] for n in ("key", "value"))
    mlp = layer.output.dense(F.gelu(layer.intermediate.dense(a))) + adapter(1, a)
    y = layer.output.LayerNorm(a + mlp + found(module.query(a), keys, values) @ out.weight.T)
    y = y + adapter(2, x) + found(module.query(x), *whole.memory()) @ out.weight.T
    torch.testing.assert_close(states[1][MASK.bool()], y[MASK.bool()])


def test_an_adapter_may_read_what_the_operation_gives() -> None:
    model, _ = attention("bert")
    at = thrifty.attach(model, thrifty.UTuning(rank=4, mha="", ffn="adapter", reads="output"))
    shake(at)
    edit = edits(at, FollowingTuner)[0]
    y, x = torch.randn(2, 16, dtype=torch.float64), torch.randn(2, 32, dtype=torch.float64)
    torch.testing.assert_close(edit(y, x), y + edit.up(torch.relu(edit.down(y))))
    assert len(at.edits) == 2


def test_heads_side_by_side() -> None:
    model, module = attention("bert")
    at = thrifty.attach(model, thrifty.UTuning(mha="", ffn="prefix", length=3, through=False))
    shake(at)
    edit = edits(at, LookupTuner)[0]
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    keys, values = edit.memory()
    q = by_head(module.query(x))
    expected = ((q @ keys.transpose(-1, -2) / 8**0.5).softmax(-1) @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(edit.branch(x), expected)
    with pytest.raises(Unfit, match="are 32 wide together, .* is 16"):
        thrifty.attach(tiny("t5", d_kv=16), thrifty.UTuning(mha="", ffn="prefix", through=False))


@pytest.mark.parametrize("method", [thrifty.UTuning, thrifty.ResTuning])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "vit"])
def test_every_mixture_trains_saves_and_leaves(kind: str, method: Any, tmp_path: Any) -> None:
    model = tiny(kind)
    base, keys = run(model), list(model.state_dict())
    at = thrifty.attach(model, method(**SMALL, **EVERYTHING))
    blocks = 4 if kind == "t5" else 2
    assert [len(edits(at, t)) for t in (AdapterTuner, AttentionTuner, LookupTuner)] == [3 * blocks, 2 * blocks, 4 * blocks]
    shake(at, 0.1)
    assert all("edits" in n.split(".") for n in frozen_stay(model, at))
    run(model).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in at.parameters())
    y = run(model)
    at.save(tmp_path / "a")
    at.detach()
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(run(model), base)
    thrifty.load(model, tmp_path / "a").detach()  # unbound: on, off and on again, and the base is what it was
    thrifty.load(model, tmp_path / "a")
    assert torch.equal(run(model), y)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_generation_with_a_cache_is_generation_without(kind: str) -> None:
    model = tiny(kind)
    at = thrifty.attach(model, thrifty.UTuning(**SMALL, **EVERYTHING))
    shake(at)
    written = [model.generate(input_ids=IDS[:1], attention_mask=MASK[:1], max_new_tokens=6, use_cache=c, pad_token_id=0)
               for c in (True, False)]
    assert torch.equal(*written)


@pytest.mark.parametrize("batch_first", [True, False])
def test_stock_attention_of_torch(batch_first: bool) -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first), 2).eval()
    x = torch.randn(2, 5, 16)
    given = x if batch_first else x.transpose(0, 1)
    mixture = {"mha": "adapter+prefix", "ffn": "adapter", "block": "adapter"}
    at = thrifty.attach(model, thrifty.UTuning(**SMALL, **mixture), example=given)
    shake(at)
    y = model(given)
    row = model(given[:1] if batch_first else given[:, :1])  # rows do not see each other
    torch.testing.assert_close(row, y[:1] if batch_first else y[:, :1], atol=1e-5, rtol=1e-5)


def test_counts() -> None:
    images = torch.zeros(1, 3, 224, 224, device="meta")
    for mixture, each in (({"mha": "prefix"}, 2 * 10 * 768), ({"mha": "prompt"}, 10 * 768), ({"ffn": "prefix"}, 2 * 10 * 768),
                          ({"block": "prompt"}, 10 * 768), ({"ffn": "adapter"}, 49_952),
                          ({"mha": "adapter", "block": "adapter"}, 2 * 49_952)):
        for method in (thrifty.UTuning, thrifty.ResTuning):
            at = thrifty.attach(published("vit-b16"), method(**{"mha": "", "ffn": "", **mixture}), example=images)
            assert count(at) == 12 * each, mixture


def test_how_a_res_adapter_starts() -> None:
    at = thrifty.attach(tiny("vit", hidden_size=64), thrifty.ResTuning(mha="", ffn="adapter", rank=32))
    for edit in edits(at, AdapterTuner):
        bound = math.sqrt(6 / (64 + 32))
        for layer in (edit.down, edit.up):
            assert 0.9 * bound < float(layer.weight.abs().max()) <= bound
            assert 0 < float(layer.bias.abs().max()) < 1e-5
    for zero, wanted in (("none", [True, True]), ("last", [True, False]), ("all", [False, False])):
        at = thrifty.attach(tiny("vit"), thrifty.ResTuning(mha="", ffn="adapter", rank=4, zero=zero))
        assert [bool(e.up.weight.any()) for e in edits(at, AdapterTuner)] == wanted
        assert [bool(e.up.bias.any()) for e in edits(at, AdapterTuner)] == wanted
    model = tiny("vit")
    base = run(model)
    thrifty.attach(model, thrifty.ResTuning(**SMALL, mha="adapter+prefix", block="adapter", zero="all"))
    torch.testing.assert_close(run(model), base, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("scaling", "size"), [("scalar", 1), ("channel", 16)])
def test_a_learned_scale(scaling: str, size: int) -> None:
    at = thrifty.attach(tiny("vit").double(), thrifty.ResTuning(mha="", ffn="adapter", rank=4, scaling=scaling))
    edit = edits(at, AdapterTuner)[0]
    assert torch.equal(edit.gain, torch.ones(size, dtype=torch.float64))
    shake(at)
    h = torch.randn(3, 16, dtype=torch.float64)
    torch.testing.assert_close(edit.branch(h), edit.up(F.gelu(edit.down(h))) * edit.gain)


class Convolution(nn.Module):
    def __init__(self, out: int = 8, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(8, out, 3, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))


class Convolutions(nn.Module):
    def __init__(self, **last: Any):
        super().__init__()
        self.layers = nn.ModuleList([Convolution(), Convolution(**last)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_images_are_taken_as_tokens_and_given_back() -> None:
    model, x = Convolutions().double(), torch.randn(2, 8, 8, 6, dtype=torch.float64)  # as high as it has channels
    method = thrifty.ResTuning(mha="", ffn="", block="adapter", rank=4)
    at = thrifty.attach(model, method, example=x)
    shake(at)
    first, second = edits(at, AdapterTuner)

    def beside(layer: Any, edit: Any, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return torch.relu(layer.conv(x)) + edit.up(F.gelu(edit.down(tokens))).transpose(1, 2).unflatten(2, x.shape[2:])

    torch.testing.assert_close(model(x), beside(model.layers[1], second, beside(model.layers[0], first, x)))
    for last in ({"stride": 2}, {"out": 16, "stride": 2}):
        with pytest.raises(Unfit, match=r"'layers.1' turns .* into"):
            thrifty.attach(Convolutions(**last), method, example=x.float())


@pytest.mark.parametrize("method", [thrifty.UTuning, thrifty.ResTuning])
def test_settings_without_meaning(method: Any) -> None:
    model = tiny("bert")
    for settings, setting in (({"mha": "lora"}, "mha"), ({"ffn": "adapter+adapter"}, "ffn"), ({"block": "prompt,prefix"}, "block"),
                              ({"mha": "", "ffn": ""}, "mha"), ({"length": 0}, "length"), ({"rank": 0}, "rank"),
                              ({"act": "x"}, "act")):
        with pytest.raises(NoSuchSetting, match=setting):
            thrifty.attach(model, method(**settings))
    own = {"reads": "both"} if method is thrifty.UTuning else {"zero": "first", "scaling": "all"}
    for setting, value in own.items():
        with pytest.raises(NoSuchSetting, match=setting):
            thrifty.attach(model, method(**{setting: value}))


def test_blocks_that_lack_an_operation() -> None:
    model, x = Convolutions(), torch.randn(1, 8, 4, 4)
    for mixture, said in (({"mha": "prefix"}, "mha='prefix' needs what 'layers.0'"), ({"ffn": "adapter"}, "a feed-forward"),
                          ({"block": "prompt"}, "block='prompt' needs")):
        with pytest.raises(NoSuchSite, match=said):
            thrifty.attach(model, thrifty.UTuning(**{"mha": "", "ffn": "", **mixture}), example=x)
    with pytest.raises(Unfit, match="sdpa"):
        thrifty.attach(tiny("bert", attn_implementation="eager"), thrifty.UTuning())
    model = tiny("bert")
    at = thrifty.attach(model, thrifty.UTuning())
    at.disable(lambda row: row.edit == "tap")
    with pytest.raises(DeadEdit, match="waits for the input"):
        run(model)

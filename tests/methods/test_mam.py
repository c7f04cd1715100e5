"""The scaled parallel adapter beside attention, its variants, and the mix of prefix and parallel adapter."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import count, frozen_stay, published, run, shake, tiny
from torch import Tensor

import thrifty
from thrifty.core.errors import CannotMerge, DeadEdit, NoSuchSetting, NoSuchSite
from thrifty.methods import make
from thrifty.methods.branches.bottleneck import Beside
from thrifty.methods.prefix import Prefix, flatten


def adapters(at: Any) -> list[Any]:
    return [e for e in at.edits.values() if isinstance(e, Beside)]


# -- the adapter beside attention -----------------------------------------------------------------------------------------------
def test_beside_attention_by_hand() -> None:
    model = tiny("bert").double()
    base = run(model)
    at = thrifty.attach(model, make("parallel-attention", rank=4, where="block[0]"))
    torch.testing.assert_close(run(model), base)
    shake(at)
    (edit,) = adapters(at)
    attention, x = model.bert.encoder.layer[0].attention, torch.randn(2, 5, 16, dtype=torch.float64)
    y = attention(x)
    y = y if isinstance(y, Tensor) else y[0]
    with at.disabled():
        heads = attention.self(x)[0]
    normal = F.layer_norm(x, (16,), edit.norm.weight, edit.norm.bias)
    added = 2.0 * (F.relu(normal @ edit.down.weight.T + edit.down.bias) @ edit.up.weight.T + edit.up.bias)
    out = attention.output
    torch.testing.assert_close(y, out.LayerNorm(F.linear(heads + added, out.dense.weight, out.dense.bias) + x))


@pytest.mark.parametrize(("kind", "edits"), [("bert", 2), ("gpt2", 2), ("llama", 2), ("t5", 6), ("bart", 6), ("vit", 2)])
def test_beside_attention_on_every_family(kind: str, edits: int) -> None:
    model = tiny(kind)
    base = run(model)
    at = thrifty.attach(model, make("parallel-attention", rank=4))
    assert len(adapters(at)) == edits
    torch.testing.assert_close(run(model), base, atol=1e-6, rtol=1e-6)
    shake(at)
    assert not torch.allclose(run(model), base, atol=1e-3)
    assert all("edits" in n.split(".") for n in frozen_stay(model, at))
    run(model).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in at.parameters()) and not at.context.taps
    with pytest.raises(CannotMerge):
        at.merge()
    at.detach()
    torch.testing.assert_close(run(model), base, atol=1e-6, rtol=1e-6)


def test_which_adapters_are_normalised() -> None:
    d, m = 768, 16
    plain = 12 * (2 * d * m + m + d)
    counts = {("mlp", ""): plain, ("mlp", "in"): plain + 12 * 2 * d, ("attn", ""): plain + 12 * 2 * d, ("attn", "none"): plain}
    for (beside, norm), wanted in counts.items():
        assert count(thrifty.attach(published("roberta-base"), thrifty.ParallelAdapter(beside=beside, norm=norm))) == wanted


def test_a_learned_scale_starts_where_it_is_told_and_trains() -> None:
    model = tiny("bert").double()
    method = thrifty.ParallelAdapter(rank=4, scale=1.0, learned=True)
    at = thrifty.attach(model, method)
    scales = [e.scale for e in adapters(at)]
    assert all(torch.equal(s.detach(), torch.ones(1).double()) for s in scales)
    shake(at)
    run(model).square().sum().backward()
    assert all(s.grad.any() for s in scales)
    undecayed = next(g["params"] for g in method.groups(at, 1e-3, 0.1) if g["weight_decay"] == 0)
    assert all(any(s is p for p in undecayed) for s in scales)


def test_the_other_start() -> None:
    at = thrifty.attach(tiny("bert", hidden_size=64), thrifty.ParallelAdapter(rank=32, init="bert"))
    drawn = torch.cat([t.weight.flatten() for e in adapters(at) for t in (e.down, e.up)])
    assert float(drawn.std()) == pytest.approx(0.02, rel=0.1)


def test_sequential_and_parallel_coincide_where_nothing_is_read() -> None:
    """With W_d = 0 what the adapter reads does not matter: both add s (relu(b_d) W_u + b_u) to the network's output."""
    outputs = []
    for method in (thrifty.ParallelAdapter(rank=4, scale=1.0), thrifty.Pfeiffer(rank=4, reads="sublayer")):
        model = tiny("bert").double()
        at = thrifty.attach(model, method)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for edit in (e for e in at.edits.values() if hasattr(e, "up")):
                edit.down.weight.zero_()
                for p in (edit.down.bias, edit.up.weight, edit.up.bias):
                    p.copy_(torch.randn(p.shape, generator=generator))
        outputs.append(run(model))
    torch.testing.assert_close(*outputs)


# -- the mix --------------------------------------------------------------------------------------------------------------------
def test_counts() -> None:
    ids = torch.ones(1, 4, dtype=torch.long, device="meta")
    at = thrifty.attach(published("roberta-base"), thrifty.MAM(), example={"input_ids": ids})
    assert count(at) > 599_232  # the network that makes the prefixes
    at.method.finish(at)
    assert count(at) == 599_232
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool, device="meta")  # prepared: one to prepare would be looked at
    batch = {"input_ids": ids, "decoder_input_ids": ids, "decoder_attention_mask": mask}
    large = thrifty.attach(published("bart-large"), make("mam-generation"), example=batch)
    large.method.finish(large)
    prefixes = sum(p.numel() for e in large.edits.values() if isinstance(e, Prefix) for p in e.parameters())
    assert (prefixes, count(large)) == (2_211_840, 2_211_840 + 25_202_688)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "bart", "vit"])
def test_on_every_family(kind: str) -> None:
    model = tiny(kind)
    method = thrifty.MAM(length=3, rank=4, hidden=8)
    at = thrifty.attach(model, method)
    with at.disabled():
        base = run(model)
    assert len(adapters(at)) == {"t5": 4, "bart": 4}.get(kind, 2)
    assert sum(isinstance(e, Prefix) for e in at.edits.values()) == {"t5": 6, "bart": 6}.get(kind, 2)
    shake(at, 0.1)
    assert not torch.allclose(run(model), base, atol=1e-4)
    assert all("edits" in n.split(".") for n in frozen_stay(model, at))
    y = run(model)
    method.finish(at)
    torch.testing.assert_close(run(model), y, atol=1e-6, rtol=1e-6)
    at.detach()
    torch.testing.assert_close(run(model), base, atol=1e-6, rtol=1e-6)


def test_each_half_alone_is_the_method_that_it_is_made_of() -> None:
    model = tiny("bert")
    at = thrifty.attach(model, thrifty.MAM(length=3, rank=4, hidden=8))
    shake(at, 0.1)
    flatten(at)
    state = at.state()
    parallel, prefix = thrifty.ParallelAdapter(rank=4), thrifty.PrefixTuning(length=3, mlp=False)
    for half, gone in ((parallel, {"prefix"}), (prefix, {"bottleneck-beside", "tap"})):
        other = tiny("bert")
        alone = thrifty.attach(other, half)
        alone.load_state({n: t for n, t in state.items() if n in alone.state()})
        at.disable(lambda row, gone=gone: row.edit in gone)
        assert torch.equal(run(model), run(other))
        at.enable()


def test_a_scale_of_zero_leaves_the_prefix() -> None:
    model, other = tiny("bert"), tiny("bert")
    at = thrifty.attach(model, thrifty.MAM(length=3, rank=4, scale=0.0, mlp=False))
    shake(at, 0.1)
    alone = thrifty.attach(other, thrifty.PrefixTuning(length=3, mlp=False))
    alone.load_state({n: t for n, t in at.state().items() if n in alone.state()})
    torch.testing.assert_close(run(model), run(other))


def test_saved_and_loaded(tmp_path: Any) -> None:
    for name in ("whole", "flat"):
        model = tiny("t5")
        method = thrifty.MAM(length=3, rank=4, hidden=8)
        at = thrifty.attach(model, method)
        shake(at, 0.1)
        if name == "flat":
            method.finish(at)
        at.save(tmp_path / name)
        fresh = tiny("t5")
        thrifty.load(fresh, tmp_path / name)
        assert torch.equal(run(fresh), run(model))


def test_refusals() -> None:
    for method, setting in ((thrifty.MAM(length=0), "length"), (thrifty.MAM(rank=0), "rank"), (thrifty.MAM(dropout=1.0), "dropout"),
                            (thrifty.ParallelAdapter(beside="ffn"), "beside"), (thrifty.ParallelAdapter(norm="out"), "norm"),
                            (thrifty.ParallelAdapter(init="zero"), "init")):
        with pytest.raises(NoSuchSetting, match=setting):
            thrifty.attach(tiny("bert"), method)
    for method in (thrifty.MAM(), make("parallel-attention")):
        with pytest.raises(NoSuchSite):
            thrifty.attach(tiny("resnet"), method)
    model = tiny("bert")
    at = thrifty.attach(model, make("parallel-attention"))
    at.disable(lambda row: row.role == "attn.q")
    with pytest.raises(DeadEdit, match="tap"):
        run(model)
    with pytest.raises(ValueError, match="output"):
        Beside(next(iter(at.edits.values())).site, "", 4, 2, "relu", "zero", 0.0, port="input")

"""Compacter, the PHM adapter and the low-rank adapter: reference arrays, published counts, and what their equations promise."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import count, frozen_stay, golden, published, run, shake, tiny
from torch import Tensor, nn

import thrifty
from thrifty.core.errors import CannotMerge, NoSuchSetting, NoSuchSite
from thrifty.methods import make
from thrifty.methods.compacter import Hypercomplex, Rules

METHODS = [thrifty.Compacter(rank=8), thrifty.PHMAdapter(rank=8, n=4), thrifty.LowRankAdapter(rank=8)]


def kron_sum(A: Tensor, B: Tensor) -> Tensor:
    return sum(torch.kron(a, b) for a, b in zip(A, B, strict=True))


def test_reference_arrays() -> None:
    g = golden("nlp_compacter")
    model = nn.Sequential(nn.Identity()).double()
    at = thrifty.attach(model, thrifty.Compacter(rank=g["hp/bottleneck"], n=g["hp/phm_dim"], k=g["hp/rank"], norms=False,
                                                 where="after.mlp"), example=g["in/x"], roles={r"^0$": "after.mlp"})
    (edit,) = at.edits.values()
    rule = at.context.shared.double().A
    own = {"shared_A": rule} | {f"{half}_{name}": getattr(getattr(edit.double(), half), short)
                                for half in ("down", "up") for name, short in (("s", "s"), ("t", "t"), ("bias", "b"))}
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(g[f"w/{name}"])
    for half in ("down", "up"):
        torch.testing.assert_close(getattr(edit, half).weight(rule), g[f"out/{half}_materialised_weight"], atol=1e-12, rtol=0)
    y = model(g["in/x"])
    torch.testing.assert_close(edit.branch(g["in/x"]), g["out/adapter"], atol=1e-10, rtol=0)
    torch.testing.assert_close(y, g["out/adapter_plus_residual"], atol=1e-10, rtol=0)
    (edit.branch(g["in/x"]) * g["in/probe"]).sum().backward()
    for name, p in own.items():
        torch.testing.assert_close(p.grad, g[f"grad/{name}"], atol=1e-10, rtol=0)


@pytest.mark.parametrize(("backbone", "name", "adapters", "tuner", "norms"), [
    ("t5-base", "compacter", 48, 114_112, 47_616), ("t5-base", "compacter++", 24, 57_088, 47_616),
    ("bert-base", "compacter", 24, 57_088, 38_400), ("bert-base", "compacter++", 12, 28_576, 38_400)])
def test_counts(backbone: str, name: str, adapters: int, tuner: int, norms: int) -> None:
    at = thrifty.attach(published(backbone), make(name))
    summary = at.summary()
    assert (len(at.edits), summary.tuner, summary.in_place) == (adapters, tuner, norms)
    total = {"t5-base": 222_882_048}.get(backbone)  # its embedding shrunk to the 32 100 tokens that there are
    if total:
        assert round(100 * summary.trainable / total, 3) == {"compacter": 0.073, "compacter++": 0.047}[name]


def test_counts_of_the_relatives() -> None:
    d, m, n = 768, 24, 12
    one = 2 * n**3 + 2 * (d * m // n) + m + d  # an A for each of the two weights
    assert count(thrifty.attach(published("t5-base"), thrifty.PHMAdapter(norms=False))) == 48 * one
    low = thrifty.attach(published("t5-base"), thrifty.LowRankAdapter(norms=False))
    assert count(low) == 48 * (2 * (d + m) + m + d)
    unshared = thrifty.attach(published("t5-base"), thrifty.Compacter(norms=False, shared=False))
    assert count(unshared) == 48 * (2 * (d + m) + m + d + 2 * 4**3)


def test_a_weight_is_the_sum_of_kronecker_products() -> None:
    torch.manual_seed(0)
    A = torch.randn(4, 4, 4, dtype=torch.float64)
    factored, whole = Hypercomplex(24, 8, 4, 2).double(), Hypercomplex(24, 8, 4, 0).double()
    torch.testing.assert_close(factored.weight(A), kron_sum(A, factored.s @ factored.t))
    torch.testing.assert_close(whole.weight(A), kron_sum(A, whole.B))
    block = factored.weight(A)[6:12, 4:6]  # p = 1, q = 2
    torch.testing.assert_close(block, sum(A[i, 1, 2] * factored.s[i] @ factored.t[i] for i in range(4)))
    before = factored.weight(A)
    with torch.no_grad():
        factored.s.mul_(3.0), factored.t.div_(3.0)
    torch.testing.assert_close(factored.weight(A), before)


def test_the_rank_is_bounded() -> None:
    torch.manual_seed(0)
    layer = Hypercomplex(768, 24, 4, 1).double()
    W = layer.weight(torch.randn(4, 4, 4, dtype=torch.float64))
    assert int(torch.linalg.matrix_rank(W)) == 16  # n^2 k, of 24 that there could be


def test_one_rule_serves_every_layer_and_gets_all_their_gradients() -> None:
    model = tiny("t5").double()
    at = thrifty.attach(model, thrifty.Compacter(rank=4))
    rules = [n for n, p in model.named_parameters() if p.shape == (4, 4, 4)]
    assert len(rules) == 1 and isinstance(at.context.shared, Rules)
    assert sum(tuple(t.shape) == (4, 4, 4) for t in at.state().values()) == 1
    shake(at, 0.1)
    run(model).square().sum().backward()
    shared, total = at.context.shared.A, torch.zeros(4, 4, 4, dtype=torch.float64)
    wanted = shared.grad.clone()
    copies = []
    for edit in at.edits.values():  # the same numbers, but each weight reads a copy of the rule
        for half in (edit.down, edit.up):
            half.A = nn.Parameter(shared.detach().clone())
            copies.append(half.A)
    run(model).square().sum().backward()
    for copy in copies:
        total += copy.grad
    assert len(copies) == 2 * 8
    torch.testing.assert_close(wanted, total)


def test_starts() -> None:
    torch.manual_seed(0)
    model = tiny("bert", hidden_size=64)
    base = run(model)
    at = thrifty.attach(model, thrifty.Compacter())
    assert all(e.down.b.shape == (4,) for e in at.edits.values())  # 64 / 32 = 2, up to a multiple of n
    torch.testing.assert_close(run(model), base, atol=1e-6, rtol=1e-6)
    torch.manual_seed(0)
    assert float(Rules(32, 1e-4).A.std()) == pytest.approx(1e-4, rel=0.05)
    layer = Hypercomplex(4096, 1024, 4, 2, own=0.01)
    for stack in (layer.s, layer.t):
        fan = stack.shape[1] + stack.shape[2]
        assert float(stack.detach().abs().max()) == pytest.approx((12 / fan) ** 0.5, rel=0.02)  # gain sqrt 2
    assert not layer.b.any() and float(Hypercomplex(32, 32, 32, 1, own=0.01).A.std()) == pytest.approx(0.01, rel=0.05)
    for method in (thrifty.PHMAdapter(n=4), thrifty.LowRankAdapter()):
        other = tiny("bert", hidden_size=64)
        thrifty.attach(other, method)
        assert float((run(other) - run(model)).abs().max()) > 1e-6


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_a_t5_sublayer_by_hand(method: Any) -> None:
    model = tiny("t5").double()
    at = thrifty.attach(model, method)
    shake(at, 0.2)
    layer, x = model.encoder.block[0].layer[1], torch.randn(2, 5, 16, dtype=torch.float64)
    edit = next(e for n, e in at.edits.items() if n.startswith("encoder.block.0.layer.1."))
    y = layer(x)
    h = layer.DenseReluDense(layer.layer_norm(x))
    if method.name == "low-rank-adapter":
        down, up = (half.U @ half.V for half in (edit.down, edit.up))
    else:
        halves = [(h.A if h.A is not None else at.context.shared.A, h.B if not h.factored else h.s @ h.t)
                  for h in (edit.down, edit.up)]
        down, up = (kron_sum(*half) for half in halves)
    z = F.gelu(h @ down + edit.down.b, approximate="tanh") @ up + edit.up.b
    torch.testing.assert_close(y, x + h + z)


def test_the_adapter_stands_before_the_dropout() -> None:
    model = tiny("t5", dropout_rate=0.5)
    at = thrifty.attach(model, thrifty.LowRankAdapter(rank=4))
    assert {e.port for e in at.edits.values()} == {"input"} and len(at.edits) == 8
    assert not any("layer.1.dropout" in key and key.startswith("decoder") for key in at.edits)  # cross-attention
    layer = model.encoder.block[0].layer[1]
    layer.dropout.train()
    shake(at)
    x = torch.randn(2, 5, 16)
    moved = layer(x) - x
    assert (moved == 0).double().mean() > 0.3  # what is dropped is dropped with its adapter
    assert {e.port for e in thrifty.attach(tiny("llama"), thrifty.LowRankAdapter(rank=4)).edits.values()} == {"output"}


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "bart", "vit"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_on_every_family(kind: str, method: Any) -> None:
    model = tiny(kind)
    at = thrifty.attach(model, method)
    with at.disabled():
        base = run(model)
    shake(at)
    assert not torch.allclose(run(model), base, atol=1e-3)
    moved = frozen_stay(model, at)
    assert any("edits" in n for n in moved) and all("edits" in n.split(".") or "orm" in n or "ln_" in n for n in moved)
    with pytest.raises(CannotMerge):
        at.merge()
    at.detach()
    torch.testing.assert_close(run(model), base, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_saved_and_loaded(method: Any, tmp_path: Any) -> None:
    model = tiny("t5")
    at = thrifty.attach(model, method)
    shake(at)
    at.save(tmp_path / "adapter")
    fresh = tiny("t5")
    thrifty.load(fresh, tmp_path / "adapter")
    assert torch.equal(run(fresh), run(model))


def test_refusals() -> None:
    for method, setting in ((thrifty.Compacter(rank=6), "multiple of n"), (thrifty.Compacter(n=0), "n must"),
                            (thrifty.Compacter(k=-1), "k must"), (thrifty.PHMAdapter(), "n = 12 does not divide the width 16"),
                            (thrifty.LowRankAdapter(k=0), "k must"), (thrifty.LowRankAdapter(rank=-1), "rank"),
                            (thrifty.Compacter(act="gelu_new"), "gelu_tanh"), (thrifty.LowRankAdapter(act="x"), "act")):
        with pytest.raises(NoSuchSetting, match=setting):
            thrifty.attach(tiny("bert"), method)
    for method in METHODS:
        with pytest.raises(NoSuchSite):
            thrifty.attach(tiny("resnet"), method)

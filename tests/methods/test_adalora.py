"""AdaLoRA: reference arrays of a whole training, published counts, and what its equations and budgets promise."""
from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import count, frozen_stay, golden, published, run, shake, tiny
from torch import nn

import thrifty
from thrifty.core.errors import NoSuchSetting, ThriftyError
from thrifty.methods.adalora import scores
from thrifty.methods.branches.components import Components, components, compress, prune
from thrifty.methods.lora import LowRank

NAMES = {"A": "lora_A", "B": "lora_B", "c": "lora_E"}
PATHS = {"0#components": "a", "2#components": "b"}


def reference() -> tuple[dict[str, Any], nn.Sequential, thrifty.AdaLoRA, thrifty.Attachment]:
    g = golden("nlp_adalora")
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 8)).double()
    model.load_state_dict({f"{i}.{n}": g[f"w/{p}.{n}"] for i, p in (("0", "a"), ("2", "b")) for n in ("weight", "bias")})
    method = thrifty.AdaLoRA(
        rank=g["hp/r"], target=g["hp/target_rank"], alpha=float(g["hp/alpha"]), gamma=g["hp/orth_weight"], beta1=g["hp/beta1"],
        beta2=g["hp/beta2"], initial=g["hp/init_warmup"], final=g["hp/final_warmup"], every=g["hp/mask_interval"], where="0|2")
    at = thrifty.attach(model, method)
    with torch.no_grad():
        for key, edit in components(at).items():
            for mine, theirs in NAMES.items():
                getattr(edit, mine).copy_(g[f"w/{PATHS[key]}.{theirs}"].reshape(getattr(edit, mine).shape))
    return g, model, method, at


def test_reference_arrays_of_the_forward_pass_and_the_penalty() -> None:
    g, model, method, at = reference()
    y = model(g["in/x"])
    torch.testing.assert_close(y, g["out/forward"], atol=1e-10, rtol=0)
    assert float(method.penalty(at)) == pytest.approx(g["out/orth_regularisation"], abs=1e-12)
    (y * g["in/probe"]).sum().backward()
    a, b = components(at).values()
    torch.testing.assert_close(a.c.grad, g["grad/a.lora_E"].flatten(), atol=1e-10, rtol=0)
    torch.testing.assert_close(b.A.grad, g["grad/b.lora_A"], atol=1e-10, rtol=0)


def test_reference_arrays_of_a_training() -> None:
    g, model, method, at = reference()
    optimiser = torch.optim.SGD(at.parameters(), lr=g["hp/sgd_lr"])
    total = g["hp/total_step"]

    def same(mine: torch.Tensor, name: str, step: int) -> None:
        torch.testing.assert_close(mine.detach(), g[name][step - 1].reshape(mine.shape), atol=1e-8, rtol=1e-8, msg=f"{name} {step}")

    for step, x in enumerate(g["in/train_inputs"], 1):
        optimiser.zero_grad()
        model(x).square().sum().backward()
        optimiser.step()
        for key, edit in components(at).items():
            for mine, theirs in NAMES.items():
                same(getattr(edit, mine), f"trace/param_after_optimiser/{PATHS[key]}.{theirs}", step)
                same(getattr(edit, mine).grad, f"trace/gradient/{PATHS[key]}.{theirs}", step)
        method.step(at, step, total)
        for key, edit in components(at).items():
            for mine, theirs in NAMES.items():
                for of in ("sensitivity", "uncertainty"):
                    same(at.memory[f"{key}:{mine}:{of}"], f"trace/{of}_ema/{PATHS[key]}.{theirs}", step)
            same(edit.c, f"trace/E_after_mask/{PATHS[key]}", step)
        assert method.budget(step, total, 8, 4) == g["trace/budget"][step - 1]
        assert method.settled(at) == (step > total - g["hp/final_warmup"])
        if not torch.isnan(bar := g["trace/threshold"][step - 1]):
            every = torch.cat(list(scores(at, components(at)).values()))
            assert float(every.sort().values[8 - g["trace/budget"][step - 1] - 1]) == pytest.approx(float(bar), rel=1e-8)
    assert sum(int((e.c != 0).sum()) for e in components(at).values()) == 4


@pytest.mark.parametrize(("rank", "published_count"), [(3, 497_880), (12, 1_991_520)])
def test_counts(rank: int, published_count: int) -> None:
    assert count(thrifty.attach(published("bert-base"), thrifty.AdaLoRA(rank=rank))) == published_count


@pytest.mark.parametrize(("rank", "published_count"), [(1, 165_888), (8, 1_327_104)])
def test_counts_of_what_is_left(rank: int, published_count: int) -> None:
    """What finish leaves are plain low-rank edits: as many numbers as LoRA of the average rank."""
    assert count(thrifty.attach(published("bert-base"), thrifty.LoRA(rank=rank, where=thrifty.AdaLoRA().where))) == published_count


def test_starts_exactly_as_the_base() -> None:
    for kind in ("bert", "gpt2", "bart", "llama"):
        model = tiny(kind)
        base = run(model)
        at = thrifty.attach(model, thrifty.AdaLoRA())
        assert torch.equal(run(model), base), kind
        edits = components(at).values()
        assert torch.cat([t.flatten() for e in edits for t in (e.A, e.B)]).std().item() == pytest.approx(0.02, rel=0.1)
        assert {name.rpartition(".")[2] for name in frozen_stay(model, at)} == {"A", "B", "c"}


@pytest.mark.parametrize(("initial", "final", "total"), [
    (0.12, 0.52, 300), (3, 5, 16), (800, 3500, 6700), (0, 1, 7), (0.5, 0.5, 3)])
def test_the_budget_falls_as_a_cube_and_ends_at_the_target(initial: float, final: float, total: int) -> None:
    method = thrifty.AdaLoRA(initial=initial, final=final)
    first, last = method.phases(total)
    assert 0 <= first <= last < total
    budgets = [method.budget(step, total, 216, 72) for step in range(1, total + 1)]
    assert budgets == sorted(budgets, reverse=True) and budgets[-1] == 72
    for step, budget in enumerate(budgets, 1):
        if step <= first:
            assert budget == 216
        elif step <= last:
            assert budget == int(72 + 144 * (1 - Fraction(step - first, last - first)) ** 3)
        else:
            assert budget == 72


def test_the_penalty_is_zero_for_orthonormal_rows_and_columns() -> None:
    for squared in (False, True):
        model = nn.Sequential(nn.Linear(8, 6, dtype=torch.float64))
        method = thrifty.AdaLoRA(rank=4, where="0", squared=squared, gamma=0.5)
        at = thrifty.attach(model, method)
        (edit,) = components(at).values()
        A, B = edit.A.detach(), edit.B.detach()
        gaps = [float(((m @ m.T - torch.eye(4)) ** 2).sum()) for m in (A, B.T)]
        expected = sum(gap if squared else gap**0.5 for gap in gaps) / 2 * 0.5
        assert float(method.penalty(at)) == pytest.approx(expected, rel=1e-12)
        with torch.no_grad():
            edit.A.copy_(torch.linalg.qr(torch.randn(8, 4, dtype=torch.float64))[0].T)
            edit.B.copy_(torch.linalg.qr(torch.randn(6, 4, dtype=torch.float64))[0])
        penalty = method.penalty(at)
        assert float(penalty) < 1e-14
        penalty.backward()
        assert edit.A.grad.isfinite().all() and edit.B.grad.isfinite().all() and edit.c.grad is None


def trained(method: thrifty.AdaLoRA, total: int = 25, **more: Any) -> tuple[nn.Module, thrifty.Attachment]:
    """A small BERT that was trained with the method, but for its finish."""
    model = tiny("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).double()
    at = thrifty.attach(model, method)
    train(model, at, method, 1, total, total)
    return model, at


def train(model: nn.Module, at: thrifty.Attachment, method: thrifty.AdaLoRA, first: int, last: int, total: int) -> None:
    optimiser = torch.optim.SGD(at.parameters(), lr=0.05)
    for step in range(first, last + 1):
        optimiser.zero_grad()
        (run(model).square().sum() + method.penalty(at)).backward()
        optimiser.step()
        method.step(at, step, total)


QUICK = thrifty.AdaLoRA(rank=4, target=2, every=2)


def test_averages_in_closed_form() -> None:
    """I~_t = (1 - b) sum over k of b^(t - k) I_k, and U~ of |I - I~| likewise."""
    model, total = tiny("bert").double(), 40
    method = thrifty.AdaLoRA(rank=2, target=1, beta1=0.7, beta2=0.9)
    at = thrifty.attach(model, method)
    optimiser = torch.optim.SGD(at.parameters(), lr=0.05)
    key, edit = next(iter(components(at).items()))
    seen: list[torch.Tensor] = []
    for step in range(1, 7):
        optimiser.zero_grad()
        run(model).square().sum().backward()
        optimiser.step()
        method.step(at, step, total)
        seen.append((edit.A * edit.A.grad).abs().detach())
    means = [sum(0.3 * 0.7 ** (t - k) * seen[k] for k in range(t + 1)) for t in range(6)]
    gaps = sum(0.1 * 0.9 ** (5 - t) * (seen[t] - means[t]).abs() for t in range(6))
    torch.testing.assert_close(at.memory[f"{key}:A:sensitivity"], means[-1])
    torch.testing.assert_close(at.memory[f"{key}:A:uncertainty"], gaps)


def test_the_budget_is_kept_and_the_ranks_stand_at_the_end() -> None:
    model, at = trained(QUICK)
    patterns = {key: (edit.c != 0) for key, edit in components(at).items()}
    assert sum(int(p.sum()) for p in patterns.values()) == 2 * len(patterns)
    assert len({int(p.sum()) for p in patterns.values()}) > 1  # ranks differ between layers
    known = {name: t.clone() for name, t in at.memory.items()}
    train(model, at, QUICK, 25, 25, 25)
    assert all(torch.equal(edit.c != 0, patterns[key]) for key, edit in components(at).items())
    assert all(torch.equal(known[name], t) for name, t in at.memory.items())


def test_finishing_leaves_plain_edits_of_the_ranks_that_were_found(tmp_path: Path) -> None:
    model, at = trained(QUICK)
    y, base = run(model), run(tiny("bert").double())
    ranks = {row.path: int((at.edits[row.key].c != 0).sum()) for row in at.plan}
    widths = {row.path: at.edits[row.key].site.din + at.edits[row.key].site.dout for row in at.plan}
    state = torch.get_rng_state()
    QUICK.finish(at)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(run(model), y, atol=1e-12, rtol=0)
    assert {row.path: row.numbers["rank"] for row in at.plan} == {p: r for p, r in ranks.items() if r}
    assert {type(e) for e in at.edits.values()} == {LowRank} and len(at.edits) == len(at.plan) == len(at.slots)
    assert count(at) == sum(r * widths[p] for p, r in ranks.items()) and sum(ranks.values()) == 2 * len(ranks)
    at.save(tmp_path / "a")
    fresh = tiny("bert").double()
    again = thrifty.load(fresh, tmp_path / "a")
    assert torch.equal(run(fresh), run(model)) and again.method == QUICK and count(again) == count(at)
    again.merge()
    torch.testing.assert_close(run(fresh), y, atol=1e-12, rtol=0)
    again.detach()
    at.detach()
    assert torch.equal(run(fresh), base) and torch.equal(run(model), base)


def test_what_is_left_trains_on() -> None:
    model, at = trained(QUICK)
    QUICK.finish(at)
    assert QUICK.penalty(at) == 0.0
    for _ in range(4):  # the watch would stop the third pass if a tensor got no gradient
        run(model).square().sum().backward()
    QUICK.step(at, 1, 25)
    assert all(p.grad is not None for p in at.parameters())


def test_pruned_but_not_finished_survives_saving_and_merging(tmp_path: Path) -> None:
    model, at = trained(QUICK)
    y = run(model)
    at.save(tmp_path / "a")
    fresh = tiny("bert").double()
    again = thrifty.load(fresh, tmp_path / "a")
    assert torch.equal(run(fresh), y)
    assert all(torch.equal(again.edits[key].c, edit.c) for key, edit in at.edits.items())
    again.merge()
    torch.testing.assert_close(run(fresh), y, atol=1e-12, rtol=0)


def test_a_training_goes_on_from_its_state_and_memory() -> None:
    model, at = trained(QUICK)
    half, begun = tiny("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).double(), QUICK
    before = thrifty.attach(half, begun)
    train(half, before, QUICK, 1, 7, 25)
    other = tiny("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).double()
    after = thrifty.attach(other, QUICK, seed=9)
    after.load_state(before.state())
    after.memory = {name: t.clone() for name, t in before.memory.items()}
    train(other, after, QUICK, 8, 25, 25)
    assert all(torch.equal(t, after.state()[name]) for name, t in at.state().items())


def test_gradients_may_be_summed_over_batches() -> None:
    seen = []
    for pieces in (1, 2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 8)).double()
        method = thrifty.AdaLoRA(rank=3, where="0|2", every=1)
        at = thrifty.attach(model, method)
        optimiser = torch.optim.SGD(at.parameters(), lr=0.1)
        for step in range(1, 13):
            optimiser.zero_grad()
            for x in torch.randn(8, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64).chunk(pieces):
                model(x).square().sum().backward()
            optimiser.step()
            method.step(at, step, 12)
        seen.append({**at.memory, **at.state()})
    for name, t in seen[0].items():
        torch.testing.assert_close(t, seen[1][name])


def one_layer(rank: int = 4, **settings: Any) -> tuple[nn.Sequential, thrifty.Attachment, Components]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6, dtype=torch.float64))
    at = thrifty.attach(model, thrifty.AdaLoRA(rank=rank, where="0", **settings))
    shake(at)
    (edit,) = components(at).values()
    return model, at, edit


def test_a_zero_factor_removes_one_component() -> None:
    model, at, edit = one_layer()
    x = torch.randn(3, 8, dtype=torch.float64)
    y = model(x)
    gone = edit.scale * edit.c[2] * F.linear(F.linear(x, edit.A[2:3]), edit.B[:, 2:3])
    prune(components(at), {"0#components": torch.tensor([3.0, 2.0, 1.0, 5.0])}, 1)
    torch.testing.assert_close(model(x), y - gone)
    assert edit.scale == 32 / (4 + 1e-5)
    compress(at, 3)
    (plain,) = at.edits.values()
    torch.testing.assert_close(model(x), y - gone)
    assert plain.A.shape == (3, 8) and plain.scale == pytest.approx(edit.scale, rel=1e-15)


def test_pruning_counts_over_all_layers_and_takes_ties() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    at = thrifty.attach(model, thrifty.AdaLoRA(rank=3, where="linear"))
    shake(at)
    edits = components(at)
    one, two = edits
    gone = prune(edits, {one: torch.tensor([1.0, 5.0, 2.0]), two: torch.tensor([2.0, 9.0, 8.0])}, 2)
    assert gone[one].tolist() == [True, False, True] and gone[two].tolist() == [True, False, False]
    assert not edits[one].c[[0, 2]].any() and edits[one].c[1] and not edits[two].c[0] and edits[two].c[1:].all()
    gone = prune(edits, {key: torch.rand(3) for key in edits}, 0)  # a target as large as the start
    assert not any(mask.any() for mask in gone.values())


def test_weighted_sums_are_exact() -> None:
    model, at, edit = one_layer(2)
    other_model, other_at, other = one_layer(3, alpha=5.0)
    numbers, tensors = Components.combine([edit, other], [0.5, -2.0])
    A, B, c = (tensors[name] for name in "ABc")
    W = model[0].weight
    torch.testing.assert_close(numbers["scale"] * B @ torch.diag(c) @ A, 0.5 * edit.delta(W) - 2.0 * other.delta(W))
    assert numbers["rank"] == 5


def test_factors_are_not_decayed() -> None:
    _, at, _ = one_layer()
    method = thrifty.AdaLoRA(where="0")
    decay = {id(p): g["weight_decay"] for g in method.groups(at, 1e-3, 0.1) for p in g["params"]}
    assert {n.rpartition(":")[2]: decay[id(p)] for n, p in at.named_parameters()} == {"A": 0.1, "B": 0.1, "c": 0.0}


@pytest.mark.parametrize("settings", [{"target": 0}, {"rank": 2, "target": 3}, {"dropout": 1.0}, {"gamma": -1.0}, {"beta1": 1.0},
                                      {"beta2": -0.1}, {"initial": -1.0}, {"final": 0.0}, {"every": 0}])
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(NoSuchSetting, match=next(iter(settings))):
        thrifty.attach(tiny("bert"), thrifty.AdaLoRA(**settings))


def test_steps_that_were_missed_are_noticed() -> None:
    model, at, _ = one_layer()
    method = thrifty.AdaLoRA(rank=4, where="0", initial=3, final=5)
    model(torch.randn(2, 8, dtype=torch.float64)).sum().backward()
    with pytest.raises(NoSuchSetting, match="longer than a training of 7 steps"):
        method.step(at, 1, 7)
    with pytest.raises(ThriftyError, match="'0#components': call step"):
        method.step(at, 16, 16)  # nothing was observed
    with pytest.raises(ThriftyError, match="4 components are left where 1 may be"):
        method.finish(at)

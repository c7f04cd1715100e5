"""DoRA of Mao et al.: reference arrays of a whole training, published counts, and what its equations promise."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import count, frozen_stay, golden, published, run, shake, tiny
from torch import nn

import thrifty
from thrifty.core.errors import NoSuchSetting, ThriftyError
from thrifty.methods import find
from thrifty.methods.branches.components import components
from thrifty.methods.dynamic_rank_dora import importance


class Blocks(nn.Module):
    """x <- x + o(tanh(q(x))), twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"q": nn.Linear(10, 8), "o": nn.Linear(8, 10)}) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block["o"](torch.tanh(block["q"](x)))
        return x


def reference() -> tuple[dict[str, Any], Blocks, thrifty.DynamicRankDoRA, thrifty.Attachment]:
    g = golden("nlp_dora_mao")
    model = Blocks()
    with torch.no_grad():
        for i in range(2):
            for part in "qo":
                for name in ("weight", "bias"):
                    model.blocks[i][part].get_parameter(name).copy_(g[f"w/block{i}.{part}.{name}"])
    method = thrifty.DynamicRankDoRA(rank=g["hp/target_average_rank"], alpha=float(g["hp/alpha"]), dropout=0.0, beta=g["hp/beta"],
                                     initial=g["hp/start_ratio"], final=g["hp/end_ratio"], every=g["hp/interval"],
                                     where="blocks.?.q|blocks.?.o")
    at = thrifty.attach(model, method)
    assert [row.path for row in at.plan] == [f"blocks.{i}.{part}" for i in range(2) for part in "qo"]
    assert method.start == g["hp/r0"]
    with torch.no_grad():
        for row in at.plan:
            name = row.path.replace("blocks.", "w/block")
            for mine, theirs in (("A", "lora_A"), ("B", "lora_B"), ("c", "c0")):
                getattr(at.edits[row.key], mine).copy_(g[f"{name}.{theirs}"])
            assert at.edits[row.key].scale == pytest.approx(g["hp/scaling"])
    return g, model, method, at


def test_reference_arrays_of_the_forward_pass_and_the_regulariser() -> None:
    g, model, method, at = reference()
    torch.testing.assert_close(model(g["in/x"]), g["out/forward"], atol=1e-6, rtol=1e-5)
    assert float(method.penalty(at)) / method.balance == pytest.approx(g["out/regulariser"], rel=1e-5)


def test_reference_arrays_of_a_training() -> None:
    g, model, method, at = reference()
    optimiser = torch.optim.SGD(at.parameters(), lr=g["hp/sgd_lr"])
    edits = list(components(at).items())
    patterns = []

    def same(mine: torch.Tensor, name: str, step: int) -> None:
        torch.testing.assert_close(mine.detach(), g[name][step], atol=1e-6, rtol=1e-5, msg=f"{name} {step}")

    for step, x in enumerate(g["in/train_inputs"]):
        optimiser.zero_grad()
        model(x).square().mean().backward()
        optimiser.step()
        same(torch.cat([e.A.flatten() for _, e in edits]), "trace/A_all", step)
        same(torch.cat([e.B.flatten() for _, e in edits]), "trace/B_all", step)
        same(torch.stack([e.c for _, e in edits]), "trace/c_before", step)
        settled = method.settled(at)
        method.step(at, step + 1, g["hp/total_steps"])
        same(torch.stack([e.c for _, e in edits]), "trace/c_after", step)
        same(torch.stack([at.memory[f"{key}:S"] for key, _ in edits]), "trace/scores", step)
        assert (method.settled(at) and not settled) == bool(g["trace/returned"][step])
        if method.settled(at):
            patterns.append(torch.stack([e.c == 0 for _, e in edits]))
    assert float(method.penalty(at)) == g["out/regulariser_after_end"] == 0.0
    assert len(patterns) == 11 and all(torch.equal(p, g["trace/final_mask"]) for p in patterns)


def test_counts() -> None:
    assert count(thrifty.attach(published("bert-base"), thrifty.DynamicRankDoRA(rank=8))) == 1_991_520


def test_it_is_not_the_dora_of_liu() -> None:
    assert find("dora") is thrifty.DoRA
    assert {find(name) for name in ("dynamic-rank-dora", "dynamic_rank_dora", "dora-mao")} == {thrifty.DynamicRankDoRA}


def test_starts_exactly_as_the_base() -> None:
    for kind in ("bert", "bart", "llama"):
        model = tiny(kind)
        base = run(model)
        at = thrifty.attach(model, thrifty.DynamicRankDoRA(rank=2))
        assert torch.equal(run(model), base), kind
        for edit in components(at).values():
            for t, fan in ((edit.A, edit.A.shape[1]), (edit.B, 3)):
                assert t.abs().max() <= (6 / fan) ** 0.5 and t.abs().max() > 0.8 * (6 / fan) ** 0.5
        assert {name.rpartition(".")[2] for name in frozen_stay(model, at)} == {"A", "B", "c"}


def test_importance_without_a_matrix_of_the_layers_size() -> None:
    model = nn.Sequential(nn.Linear(9, 7, dtype=torch.float64))
    at = thrifty.attach(model, thrifty.DynamicRankDoRA(rank=2, where="0"))
    (edit,) = components(at).values()
    assert not importance(edit).any()  # c is zero
    shake(at)
    parts = torch.stack([edit.c[i] * torch.outer(edit.B[:, i], edit.A[i]) for i in range(3)])
    expected = parts.flatten(1).norm(dim=1) / (parts.sum(0).norm() + 1e-8)
    torch.testing.assert_close(importance(edit), expected)


def test_the_regulariser_is_the_mean_variance_and_zero_for_constant_rows_and_columns() -> None:
    model = nn.Sequential(nn.Linear(9, 7), nn.Linear(7, 1)).double()
    method = thrifty.DynamicRankDoRA(rank=2, balance=1.0, where="linear")
    at = thrifty.attach(model, method)
    one, two = components(at).values()
    rows = [*one.A, *one.B.T, *two.A]  # a column of one entry has no variance
    expected = sum(float(((r - r.mean()) ** 2).sum() / (len(r) - 1)) for r in rows) / (2 * 2 * 3)
    assert float(method.penalty(at)) == pytest.approx(expected, rel=1e-12)
    with torch.no_grad():
        for edit in (one, two):
            edit.A.copy_(edit.A[:, :1].expand_as(edit.A))
            edit.B.copy_(edit.B[:1].expand_as(edit.B))
    penalty = method.penalty(at)
    assert float(penalty) == pytest.approx(0.0, abs=1e-30)
    penalty.backward()
    assert all(t.grad.isfinite().all() for edit in (one, two) for t in (edit.A, edit.B))


def test_the_count_grows_as_a_cube_up_to_the_target() -> None:
    method = thrifty.DynamicRankDoRA(rank=8)
    counts = [method.count(now, 105, 72 * 12) for now in range(106)]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == 72 * 4
    for every in (12, 36, 84, 372):  # where a float would lose one
        for rank in range(1, 12):
            method = thrifty.DynamicRankDoRA(rank=rank)
            assert every * method.start - method.count(7, 7, every * method.start) <= every * rank


@pytest.mark.parametrize("total", [1, 2, 3, 7, 20, 40])
def test_the_budget_is_kept_and_the_pattern_stands(total: int) -> None:
    method = thrifty.DynamicRankDoRA(rank=2, every=3, dropout=0.0)
    model = tiny("bert").double()
    at = thrifty.attach(model, method)
    optimiser = torch.optim.SGD(at.parameters(), lr=0.01)
    patterns, settled = [], []
    for step in range(1, total + 1):
        optimiser.zero_grad()
        (run(model).square().sum() + method.penalty(at)).backward()
        optimiser.step()
        method.step(at, step, total)
        settled.append(method.settled(at))
        patterns.append(torch.cat([e.c == 0 for e in components(at).values()]))
    end = settled.index(True)
    assert all(settled[end:]) and all(torch.equal(p, patterns[-1]) for p in patterns[end:])
    assert int((~patterns[-1]).sum()) <= 2 * len(at.edits)


def test_finishing_survives_saving_merging_and_detaching(tmp_path: Path) -> None:
    method = thrifty.DynamicRankDoRA(rank=2, every=3, dropout=0.0)
    model = tiny("bart").double()
    base = run(model)
    at = thrifty.attach(model, method)
    optimiser = torch.optim.SGD(at.parameters(), lr=0.001)
    for step in range(1, 21):
        optimiser.zero_grad()
        run(model).square().mean().backward()
        optimiser.step()
        method.step(at, step, 20)
    y, most = run(model), 2 * len(at.edits)
    method.finish(at)
    torch.testing.assert_close(run(model), y, atol=1e-12, rtol=0)
    assert sum(row.numbers["rank"] for row in at.plan) <= most and {row.edit for row in at.plan} == {"low-rank"}
    at.save(tmp_path / "a")
    fresh = tiny("bart").double()
    again = thrifty.load(fresh, tmp_path / "a")
    assert torch.equal(run(fresh), run(model))
    again.merge()
    torch.testing.assert_close(run(fresh), y, atol=1e-12, rtol=0)
    again.detach()
    assert torch.equal(run(fresh), base)


def test_the_step_before_the_start_may_count_as_the_start() -> None:
    """T = 10 starts at 1.5: t = 1 gives int(-0.5) = 0, as in the authors' code; t = 2 gives 0 again."""
    model = nn.Sequential(nn.Linear(6, 5))
    method = thrifty.DynamicRankDoRA(rank=4, where="0")
    at = thrifty.attach(model, method)
    (edit,) = components(at).values()
    shake(at)
    method.step(at, 1, 10)
    assert int((edit.c == 0).sum()) == 1


@pytest.mark.parametrize("settings", [{"rank": 0}, {"growth": 0.5}, {"dropout": 1.0}, {"balance": -1.0}, {"beta": 1.0},
                                      {"initial": 1.0}, {"final": 0.9}, {"every": 0}])
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(NoSuchSetting, match=next(iter(settings))):
        thrifty.attach(tiny("bert"), thrifty.DynamicRankDoRA(**settings))


def test_steps_that_were_missed_are_noticed() -> None:
    model = nn.Sequential(nn.Linear(6, 5))
    method = thrifty.DynamicRankDoRA(rank=2, where="0")
    at = thrifty.attach(model, method)
    shake(at)
    with pytest.raises(ThriftyError, match="nothing is known of the steps before 5"):
        method.step(at, 5, 20)
    with pytest.raises(ThriftyError, match="3 components are left where 2 may be"):
        method.finish(at)

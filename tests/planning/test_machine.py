"""Operations by what they cost, and how long a machine takes for them."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from thrifty.core.errors import BrokenArtifact
from thrifty.planning.calibrating import calibrate
from thrifty.planning.machine import Machine, between, describe, place, recall, remember
from thrifty.planning.observed import Observed, Saved
from thrifty.planning.work import Operation

CPU = torch.device("cpu")


def observe(run: object) -> Observed:
    seen = Observed(CPU)
    with seen:
        run()  # type: ignore[operator]
    return seen


def test_a_product_costs_two_operations_for_each_multiplication_and_moves_its_matrices() -> None:
    x, w = torch.ones(6, 10), torch.ones(10, 4)
    work = observe(lambda: x @ w).take()
    assert work.operations == {Operation("product", "float32", 2 * 6 * 10 * 4, 4 * (60 + 40 + 24), 4): 1}


def test_kinds_of_operations() -> None:
    x, q = torch.ones(2, 8, 8), torch.ones(1, 2, 16, 8)
    kinds = {"curve": lambda: F.gelu(x), "draw": lambda: torch.empty(3).bernoulli_(0.5), "move": lambda: x + x,
             "call": lambda: x.view(-1), "attention": lambda: F.scaled_dot_product_attention(q, q, q),
             "convolution": lambda: F.conv1d(x, x), "product": lambda: x[0] @ x[0], "batched": lambda: x @ x}
    for kind, run in kinds.items():
        assert kind in {operation.kind for operation in observe(run).take().operations}, kind
    attention = observe(kinds["attention"]).take()
    assert attention.flops == 2 * (2 * 2 * 16 * 16 * 8)  # q k', and the result times v, for two heads


def test_time_is_that_of_the_call_of_moving_and_of_computing() -> None:
    machine = Machine({}, 0.5, {"product float32": [(1.0, 10.0)], "move": [(1.0, 100.0)], "curve": [(1.0, 20.0)]})
    seen = Observed(CPU)
    for operation in (Operation("product", "float32", 100, 10, 4), Operation("product", "bfloat16", 1, 1000, 4),
                      Operation("curve", "float32", 0, 40), Operation("call", "float32", 0, 0)):
        seen.work.operations[operation] += 1
    assert machine.seconds(seen.work) == pytest.approx((0.5 + 10 + 0.1) + (0.5 + 0.1 + 10) + (0.5 + 2) + 0.5)


def test_rates_between_two_sizes_lie_on_a_line_over_logarithms() -> None:
    known = [(1.0, 10.0), (100.0, 1000.0)]
    assert [between(known, size) for size in (0.1, 1.0, 10.0, 100.0, 1e6)] == pytest.approx([10, 10, 100, 1000, 1000])


def test_what_was_measured_is_remembered_for_this_machine_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path))
    assert recall(CPU) is None
    found = calibrate(CPU, seconds=0.05)
    assert found.call > 0 and all(rate > 0 for rates in found.rates.values() for _, rate in rates)
    assert all([size for size, _ in rates] == sorted({size for size, _ in rates}) for rates in found.rates.values())
    path = remember(found)
    assert path.is_relative_to(tmp_path) and recall(CPU) == found
    assert place({**describe(CPU), "threads": 99}) != path
    path.write_text("{")
    with pytest.raises(BrokenArtifact, match="cannot be read"):
        recall(CPU)


def test_held_memory_counts_every_piece_once_and_forgets_what_is_freed() -> None:
    seen = Observed(CPU)
    x = torch.ones(1000)
    views = [x, x.view(10, 100), x[:5]]
    with seen:
        assert seen.hold(views) == 4000
        y = x * 2
        z = y.view(2, 500)
        assert seen.now == 8000
        del y
        assert seen.now == 8000
        del z
        assert (seen.now, seen.most) == (4000, 8000)
        seen.begin()
        x.add_(1)
        assert seen.most == 4000
    del views


def test_saved_counts_what_autograd_keeps_and_not_the_models_own() -> None:
    w, x = torch.nn.Parameter(torch.ones(10, 10)), torch.ones(5, 10)
    saved = Saved([w])
    with saved:
        y = (x @ w).exp()
    assert saved.most == 5 * 10 * 4 * 2  # x, and the result of exp
    y.sum().backward()
    del y
    assert saved.now == 5 * 10 * 4  # x is there still

"""Thresholds for a budget: a worked example, and what holds for any confidences."""
from __future__ import annotations

import math
import random

import pytest

from thrifty.methods.depth import exit_budget as budget

C = [[.9, .8, .6, .55, .5, .4], [.95, .7, .85, .65, .6, .5], [1.0] * 6]
INF = math.inf


@pytest.mark.parametrize(("q", "t", "left", "cost"), [
    (0.5, [.6, .65, -INF], [1, 1, 1, 2, 3, 3], 2.1667), (1.0, [.8, .65, -INF], [1, 1, 2, 2, 3, 3], 2.3333),
    (2.0, [INF, .95, -INF], [2, 3, 3, 3, 3, 3], 3.6667)])
def test_worked_example(q: float, t: list[float], left: list[int], cost: float) -> None:
    assert budget.thresholds(C, q) == t
    assert [k + 1 for k in budget.leave(C, t)] == left
    assert round(budget.cost(budget.leave(C, t), (1, 2, 4)), 4) == cost


def test_shares() -> None:
    assert [round(p, 4) for p in budget.shares(0.5, 3)] == [.5714, .2857, .1429]
    for q in (0.05, 1.0, 4.95):
        p = budget.shares(q, 5)
        assert sum(p) == pytest.approx(1) and p[3] / p[2] == pytest.approx(q)


def test_ends() -> None:
    assert budget.leave(C, [-INF] * 3) == [0] * 6
    assert budget.leave(C, [INF, INF, -INF]) == [2] * 6


def test_a_higher_threshold_lets_fewer_leave_and_costs_grow_with_q() -> None:
    drawn = random.Random(1)
    c = [[drawn.random() for _ in range(200)] for _ in range(4)]
    for k in range(3):
        t = [.5, .5, .5, -INF]
        counts = [budget.leave(c, [*t[:k], least, *t[k + 1:]]).count(k) for least in (.1, .3, .5, .7, .9, INF)]
        assert counts == sorted(counts, reverse=True) and counts[-1] == 0
    each = (1, 2, 4, 8)
    costs = [budget.cost(budget.leave(c, budget.thresholds(c, q)), each) for q in (.05, .2, .5, 1, 2, 3, 4.95)]
    assert costs == sorted(costs) and costs[0] >= 1 and costs[-1] <= 8
    quotas = [math.floor(200 * p) for p in budget.shares(1.0, 4)]
    assert [budget.leave(c, budget.thresholds(c, 1.0)).count(k) for k in range(3)] == quotas[:3]


def test_ties_leave_together() -> None:
    c = [[.5] * 6, [.9, .8, .7, .6, .5, .4], [1.0] * 6]
    t = budget.thresholds(c, 1.0)
    assert t[0] == .5 and budget.leave(c, t) == [0] * 6
    assert t[1] == INF  # nobody is left to leave there

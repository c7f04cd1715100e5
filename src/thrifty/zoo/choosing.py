"""Which blocks to take: one of each stage and one of each group, within limits.

Deep Model Reassembly (Yang, Zhou, Liu, Ye, Wang; NeurIPS 2022, arXiv:2210.17409); the integer program is solved by HiGHS
(Huangfu, Hall, "Parallelizing the dual revised simplex method", Mathematical Programming Computation 10, 2018), through SciPy.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import Missing, Unfit
from .costs import BILLION, MILLION
from .routes import Block, Step

Route = list[Step]
Score = Callable[[Route], float]


@dataclass(frozen=True)
class Limits:
    """Parameters in millions and operations (multiplications with an addition, for one picture) in billions: above the least, and
    at most the most."""

    parameters: float
    operations: float
    least_parameters: float = 0.0
    least_operations: float = 0.0

    def __str__(self) -> str:
        return (f"more than {self.least_parameters:g} and at most {self.parameters:g} M parameters (params), more than "
                f"{self.least_operations:g} and at most {self.operations:g} G operations (flops)")

    def keeps(self, route: Route) -> bool:
        """Whether an assembly keeps them."""
        parameters, operations = totals(route)
        return (self.least_parameters * MILLION < parameters <= self.parameters * MILLION
                and self.least_operations * BILLION < operations <= self.operations * BILLION)


def totals(route: Route) -> tuple[int, int]:
    """Parameters and operations of an assembly."""
    return sum(step.parameters for step in route), sum(step.operations for step in route)


class Program:
    """max sum of worth, over steps x in {0, 1}: one leads from the start to the end, through each group once, within limits.

    As each step knows the size of the picture that arrives, all costs are sums over steps, and exact.
    """

    def __init__(self, steps: Sequence[Step], blocks: Sequence[Block]) -> None:
        self.steps, self.blocks = list(steps), blocks
        self.flow = self._flow()

    def _flow(self) -> tuple[Any, Any]:
        """Rows and right sides of what must hold exactly: one first step, as many into each place as out of it, groups once."""
        last = max(block.stage for block in self.blocks)
        rows = [[float(step.origin is None) for step in self.steps]]
        wanted = [1.0]
        for place in dict.fromkeys(s.place for s in self.steps if self.blocks[s.block].stage < last):
            rows.append([float(s.place == place) - float(s.origin == place) for s in self.steps])
            wanted.append(0.0)
        for group in sorted({block.group for block in self.blocks}):
            rows.append([float(self.blocks[s.block].group == group) for s in self.steps])
            wanted.append(1.0)
        return np.array(rows), np.array(wanted)

    def best(self, goal: Sequence[float], limits: Limits | None = None, without: Sequence[Route] = ()) -> Route | None:
        """The route of the largest sum of ``goal``, one number for each step, other than those ``without``; None if none is left.

        Raises:
            Missing: SciPy is not installed.
        """
        optimize = need_scipy()
        if not self.steps:
            return None
        rows, wanted = self.flow
        rules = [optimize.LinearConstraint(rows, wanted, wanted)]
        if limits is not None:
            costs = np.array([[s.parameters / MILLION for s in self.steps], [s.operations / BILLION for s in self.steps]])
            low, high = ([limits.least_parameters, limits.least_operations], [limits.parameters, limits.operations])
            rules.append(optimize.LinearConstraint(costs, low, high))
        for route in without:
            taken = [float(any(step is one for one in route)) for step in self.steps]
            rules.append(optimize.LinearConstraint(np.array([taken]), -np.inf, len(route) - 1))
        found = optimize.milp(-np.asarray(goal), constraints=rules, integrality=np.ones(len(self.steps)),
                              bounds=optimize.Bounds(0, 1))
        if found.x is None:
            return None
        return sorted((s for s, x in zip(self.steps, found.x, strict=True) if x > 0.5), key=lambda s: self.blocks[s.block].stage)

    def propose(self, limits: Limits) -> Iterator[Route]:
        """All routes that keep ``limits``, those whose blocks are worth most first."""
        seen: list[Route] = []
        while (route := self.best([self.blocks[s.block].worth for s in self.steps], limits, seen)) is not None:
            seen.append(route)
            if limits.keeps(route):  # which the solver knows but for rounding, and for what must be more than the least
                yield route

    def least(self) -> tuple[int, int] | None:
        """The fewest parameters and the fewest operations of any route; None where there is no route."""
        small = self.best([-s.parameters / MILLION for s in self.steps])
        quick = self.best([-s.operations / BILLION for s in self.steps])
        return None if small is None or quick is None else (totals(small)[0], totals(quick)[1])


def search(program: Program, limits: Limits, score: Score, candidates: int) -> tuple[Route, float, int]:
    """The best by ``score`` of the first ``candidates`` that the program proposes, its score, and how many there were.

    Where it has no more than that to propose, that is the best of all.

    Raises:
        Unfit: nothing keeps the limits; the message says what the smallest needs.
    """
    best: tuple[Route, float] | None = None
    count = 0
    for route in program.propose(limits):
        count += 1
        value = score(route)
        if best is None or value > best[1]:
            best = route, value
        if count == candidates:
            break
    if best is None:
        raise Unfit(nothing(program, limits))
    return (*best, count)


def nothing(program: Program, limits: Limits) -> str:
    """The message that no assembly is allowed."""
    least = program.least()
    if least is None:
        return "there is no assembly at all with one block of each stage and group, where no convolutions follow tokens"
    return (f"no assembly keeps the limits, {limits}; the smallest has {least[0] / MILLION:.4g} M parameters, the quickest needs "
            f"{least[1] / BILLION:.4g} G operations")


def need_scipy() -> Any:
    """The module `scipy.optimize`.

    Raises: Missing.
    """
    try:
        import scipy.optimize
    except ImportError as error:
        raise Missing('choosing blocks by an integer program needs SciPy: pip install "thrifty[zoo]"') from error
    return scipy.optimize

"""The authors' search for blocks that go together: at random, and greedily.

Deep Model Reassembly (Yang, Zhou, Liu, Ye, Wang; NeurIPS 2022, arXiv:2210.17409).
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from ..core.errors import Unfit
from .choosing import Limits, Route, Score
from .routes import Block, Place, Step

Chosen = dict[int, int]  # stage -> number of the block that stands there


class Greedy:
    """Assemblies by the blocks that are in them; each is scored once, and one that breaks the limits is worth nothing."""

    def __init__(self, steps: Sequence[Step], blocks: Sequence[Block], limits: Limits, score: Score) -> None:
        self.after = {(step.origin, step.block): step for step in steps}
        self.blocks, self.limits, self.score = blocks, limits, score
        self.parts = 1 + max(block.stage for block in blocks)
        self.known: dict[tuple[int, ...], tuple[float, Route]] = {}

    def follow(self, numbers: Sequence[int]) -> Route | None:
        """The steps through those blocks; None where one cannot be taken."""
        route: Route = []
        place: Place | None = None
        for number in numbers:
            step = self.after.get((place, number))
            if step is None:
                return None
            route.append(step)
            place = step.place
        return route

    def judge(self, chosen: Chosen) -> float:
        """The score of an assembly; less than any where it lacks a stage, cannot be built, or breaks the limits."""
        key = tuple(chosen[stage] for stage in sorted(chosen))
        if len(key) < self.parts:
            return -math.inf
        if key not in self.known:
            route = self.follow(key)
            self.known[key] = (self.score(route), route) if route is not None and self.limits.keeps(route) else (-math.inf, [])
        return self.known[key][0]

    def begin(self, order: Sequence[int]) -> Chosen:
        """Each block, in that order, where its stage and its group are still free."""
        chosen: Chosen = {}
        for number in order:
            block = self.blocks[number]
            if block.stage not in chosen and all(self.blocks[b].group != block.group for b in chosen.values()):
                chosen[block.stage] = number
        return chosen

    def swap_in(self, chosen: Chosen, number: int) -> Chosen:
        """With another block, which drives out the one of its stage and the one of its group."""
        block = self.blocks[number]
        return {**{stage: b for stage, b in chosen.items() if self.blocks[b].group != block.group}, block.stage: number}


def search_greedily(steps: Sequence[Step], blocks: Sequence[Block], limits: Limits, score: Score, restarts: int,
                    rng: Random) -> tuple[Route, float, int]:
    """The best assembly that was met, its score, and how many were scored.

    From each of ``restarts`` random orders: fill the stages, then take in each further block where that scores more. (In the
    authors' code a candidate that is not taken leaves its marks, and scores below 0 never count.)

    Raises:
        Unfit: nothing was found that keeps the limits.
    """
    greedy = Greedy(steps, blocks, limits, score)
    for _ in range(restarts):
        order = rng.sample(range(len(blocks)), len(blocks))
        chosen = greedy.begin(order)
        for number in order:
            fresh = greedy.swap_in(chosen, number)
            if greedy.judge(fresh) > greedy.judge(chosen):
                chosen = fresh
    scored = [(value, route) for value, route in greedy.known.values() if route]
    if not scored:
        raise Unfit(f"{restarts} greedy searches found no assembly that keeps the limits, {limits}; search='integer' tells whether "
                    "there is one")
    value, route = max(scored, key=lambda one: one[0])
    return route, value, len(scored)

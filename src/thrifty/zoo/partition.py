"""Cutting models into blocks, and finding which blocks of different models do the same work.

Deep Model Reassembly (Yang, Zhou, Liu, Ye, Wang; NeurIPS 2022, arXiv:2210.17409).
"""
from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from ..core.errors import Unfit
from .similarity import Table

SAME = 2.0  # the similarity of a block and itself, the most that there is


@dataclass(frozen=True)
class Piece:
    """Nodes ``lo`` to ``hi`` - 1 of a model, which is block number ``stage`` of it."""

    model: int
    stage: int
    lo: int
    hi: int


@dataclass(frozen=True)
class Likeness:
    """s(a, b) of two blocks: how alike what enters their first nodes is, plus the same for what leaves their last, in [0, 2].

    ``starts`` and ``ends`` are tables over the nodes of all models, one model behind the other, ``lengths`` nodes each. Different
    blocks of one model, and unless ``across`` blocks of different stages, have 0 in common. (The authors' code, which compares a
    model's name with itself, has no other case; it also gives a block and itself 1, half of what others may have.)
    """

    starts: Table
    ends: Table
    lengths: tuple[int, ...]
    across: bool = False

    def __call__(self, a: Piece, b: Piece) -> float:
        if a == b:
            return SAME
        if a.model == b.model or (a.stage != b.stage and not self.across):
            return 0.0
        i, j = sum(self.lengths[: a.model]), sum(self.lengths[: b.model])
        return self.starts[i + a.lo][j + b.lo] + self.ends[i + a.hi - 1][j + b.hi - 1]


@dataclass
class Partition:
    """Every model in blocks [models][stages], the group of each, the group's centre, and after each round what was maximised:
    the sum over blocks of how alike each is to the centre of its group."""

    pieces: list[list[Piece]]
    groups: list[list[int]]
    centres: list[Piece]
    sums: list[float] = field(default_factory=list)

    def members(self, group: int) -> list[Piece]:
        """The blocks of a group."""
        return [piece for own, of in zip(self.pieces, self.groups, strict=True)
                for piece, g in zip(own, of, strict=True) if g == group]

    def cost(self, alike: Likeness) -> float:
        """The sum over groups of how alike each two of their blocks are."""
        return sum(alike(a, b) for g in range(len(self.centres)) for a, b in itertools.combinations(self.members(g), 2))


def partition(alike: Likeness, parts: int, names: Sequence[str], rng: Random, *, slack: float = 0.2, trials: int = 200,
              iterations: int = 200) -> Partition:
    """The best of ``trials`` partitions from random cuts: each model in ``parts`` blocks of at most (1 + slack) ceil(N / parts)
    nodes, and as many groups, none empty.

    Raises:
        Unfit: a model, called by ``names``, has fewer nodes than that; or no trial filled all groups.
    """
    for length, name in zip(alike.lengths, names, strict=True):
        if length < parts:
            raise Unfit(f"{name!r} has {length} blocks, too few to be cut into {parts}: ask for fewer (blocks)")
    best: Partition | None = None
    for _ in range(trials):
        found = improve(begin(alike, parts, slack, rng), alike, slack, iterations)
        filled = all(found.members(group) for group in range(parts))
        if filled and (best is None or found.cost(alike) > best.cost(alike)):
            best = found
    if best is None:
        raise Unfit(f"none of {trials} trials found {parts} groups of blocks that are alike among {', '.join(names)}: ask for "
                    "fewer blocks, or more trials")
    return best


def largest(length: int, parts: int, slack: float) -> int:
    """How many nodes a block may have."""
    return math.floor((1 + slack) * math.ceil(length / parts) + 1e-9)


def begin(alike: Likeness, parts: int, slack: float, rng: Random) -> Partition:
    """Random cuts, random blocks as centres (one of each stage, unless those of different stages may be alike), nearest groups."""
    pieces = [cut(model, length, parts, largest(length, parts, slack), rng) for model, length in enumerate(alike.lengths)]
    if alike.across:
        centres = rng.sample([piece for own in pieces for piece in own], parts)
    else:
        centres = [rng.choice([own[stage] for own in pieces]) for stage in range(parts)]
    found = Partition(pieces, [], centres)
    assign(found, alike)
    return found


def cut(model: int, length: int, parts: int, most: int, rng: Random) -> list[Piece]:
    """A model of ``length`` nodes in ``parts`` blocks of random sizes from 1 to ``most``."""
    pieces, lo = [], 0
    for stage in range(parts):
        left, rest = length - lo, parts - stage - 1
        hi = lo + rng.randint(max(1, left - rest * most), min(most, left - rest))
        pieces.append(Piece(model, stage, lo, hi))
        lo = hi
    return pieces


def improve(found: Partition, alike: Likeness, slack: float, iterations: int) -> Partition:
    """Move cuts, assign blocks to centres, choose centres; until no cut moves. No round makes the sum smaller."""
    found.sums = [nearness(found, alike)]
    for _ in range(iterations):
        moved = shift(found, alike, slack)
        assign(found, alike)
        recentre(found, alike)
        found.sums.append(nearness(found, alike))
        if not moved and found.sums[-1] <= found.sums[-2]:
            break
    return found


def nearness(found: Partition, alike: Likeness) -> float:
    """The sum over blocks of how alike each is to the centre of its group."""
    return sum(alike(piece, found.centres[g]) for own, of in zip(found.pieces, found.groups, strict=True)
               for piece, g in zip(own, of, strict=True))


def shift(found: Partition, alike: Likeness, slack: float) -> bool:
    """Move each cut by a node to the left or right where both its blocks together become more alike to their centres."""
    moved = False
    for model, own in enumerate(found.pieces):
        most = largest(alike.lengths[model], len(own), slack)
        for stage, by in itertools.product(range(len(own) - 1), (-1, 1)):
            one, two = own[stage], own[stage + 1]
            pair = Piece(model, stage, one.lo, one.hi + by), Piece(model, stage + 1, two.lo + by, two.hi)
            if not all(1 <= piece.hi - piece.lo <= most for piece in pair):
                continue
            centres = [found.centres[g] for g in found.groups[model][stage : stage + 2]]
            if sum(alike(new, c) - alike(old, c) for new, old, c in zip(pair, (one, two), centres, strict=True)) > 1e-12:
                own[stage : stage + 2] = pair
                moved = True
    return moved


def assign(found: Partition, alike: Likeness) -> None:
    """Every block to the centre that it is most alike to; the first of several."""
    found.groups = [[max(range(len(found.centres)), key=lambda g, piece=piece: alike(piece, found.centres[g]))  # type: ignore[misc]
                     for piece in own] for own in found.pieces]


def recentre(found: Partition, alike: Likeness) -> None:
    """The block that all of a group are most alike to becomes its centre, unless the old one still is."""
    for g, old in enumerate(found.centres):
        members = found.members(g)
        found.centres[g] = max([old, *members], key=lambda c: sum(alike(c, piece) for piece in members))

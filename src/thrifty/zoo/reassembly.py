"""From several models to the plan of one: look, cut, choose.

Deep Model Reassembly (Yang, Zhou, Liu, Ye, Wang; NeurIPS 2022, arXiv:2210.17409).
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.drawing import is_drawing
from ..core.errors import NoSuchSetting, Unfit, nearest
from ..rank.naswot import naswot
from .choosing import Limits, Program, Route, search, totals
from .costs import BILLION, MILLION
from .greedy import search_greedily
from .nodes import Chain, read_chains
from .partition import Likeness, partition
from .routes import Block, lay_out
from .similarity import KINDS
from .stitching import Joint, Net, Stem, Stitch
from .zoo import Zoo

BATCH = 32  # pictures that a score is of
PIECE = re.compile(r"(.+)\[(\d+):(\d+)\]")


@dataclass(frozen=True)
class Wishes:
    """What is sought; see `thrifty.DeRy`."""

    blocks: int
    limits: Limits
    search: str
    candidates: int
    similarity: str
    across: bool
    slack: float
    trials: int
    iterations: int
    rejoin: bool
    assembly: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What was found: how pieces are joined, the paths of their blocks, and what that costs and was chosen for."""

    names: list[str]
    joints: list[Joint]
    nodes: list[list[str]]
    width: int
    parameters: int
    operations: int
    score: float | None
    scored: int

    @property
    def channels(self) -> int:
        """How many the stem gives out."""
        return self.joints[0].din

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"blocks": self.names, "parameters": self.parameters, "operations": self.operations, "score": self.score,
                "scored": self.scored}


def reassemble(zoo: Zoo, pictures: Sequence[Tensor], wishes: Wishes, seed: int) -> Plan:
    """The plan of the best assembly that was found of the models in a zoo.

    Raises:
        Unfit: a model cannot be cut, or no assembly keeps the limits.
        NoSuchSetting: pieces are named that there are not.
        Missing: SciPy is not installed, and the search needs it.
    """
    if is_drawing(zoo.head.weight):
        raise Unfit("blocks are compared by what they make of pictures, and these models have no weights")
    batches = regroup(pictures)
    chains, names, rng = read_chains(zoo, batches), zoo.trunk.names, Random(f"dery {seed}")
    blocks = name_blocks(chains, names, wishes.assembly) if wishes.assembly else cut_blocks(chains, names, wishes, rng)
    steps = lay_out(zoo, blocks, tuple(batches[0].shape[1:]), zoo.head.out_features, wishes.rejoin)
    if wishes.assembly:
        return only_plan(steps, blocks, wishes)

    def score(route: Route) -> float:
        return float(naswot(build(zoo, route, blocks), [(batch,) for batch in batches], "dery"))

    if wishes.search == "greedy":
        route, value, count = search_greedily(steps, blocks, wishes.limits, score, wishes.candidates, rng)
    else:
        route, value, count = search(Program(steps, blocks), wishes.limits, score, wishes.candidates)
    return write_plan(route, blocks, value, count)


def regroup(pictures: Sequence[Tensor]) -> list[Tensor]:
    """The pictures in batches of 32; fewer at the end are left out, as scores compare for batches of one size."""
    every = torch.cat(list(pictures))
    parts = list(every.split(BATCH))
    return parts if len(parts) == 1 else [part for part in parts if len(part) == BATCH]


def cut_blocks(chains: Sequence[Chain], names: Sequence[str], wishes: Wishes, rng: Random) -> list[Block]:
    """All models in blocks, which are grouped."""
    kind = KINDS[wishes.similarity]
    starts, ends = (kind([x for chain in chains for x in getattr(chain, side)]) for side in ("entering", "leaving"))
    alike = Likeness(starts, ends, tuple(len(chain.nodes) for chain in chains), wishes.across)
    found = partition(alike, wishes.blocks, names, rng, slack=wishes.slack, trials=wishes.trials, iterations=wishes.iterations)
    return [make_block(chains[piece.model], names[piece.model], piece.stage, group, piece.lo, piece.hi)
            for own, groups in zip(found.pieces, found.groups, strict=True) for piece, group in zip(own, groups, strict=True)]


def make_block(chain: Chain, name: str, stage: int, group: int, lo: int, hi: int) -> Block:
    """Nodes of a model as one block, worth its own NASWOT score in its own model."""
    kernel = np.sum(chain.agreements[lo:hi], axis=0, dtype=float)
    kernel += np.eye(len(kernel)) * max(1e-6 * np.trace(kernel) / len(kernel), 1e-6)  # pictures with the same codes
    return Block(f"{name}[{lo}:{hi}]", stage, group, tuple(chain.nodes[lo:hi]), float(np.linalg.slogdet(kernel)[1]) / len(kernel))


def name_blocks(chains: Sequence[Chain], names: Sequence[str], assembly: Sequence[str]) -> list[Block]:
    """The pieces that ``assembly`` names, one for each stage.

    Raises:
        NoSuchSetting: there is no such model, or it has no such blocks, or another piece has one of them already.
    """
    found: list[Block] = []
    for stage, said in enumerate(assembly):
        match = PIECE.fullmatch(said.strip())
        if match is None or match[1] not in names:
            raise NoSuchSetting(f"assembly: {said!r} names no piece of a model, as in {f'{names[0]}[0:2]'!r}."
                                + nearest(said.partition("[")[0], names))
        which, lo, hi = list(names).index(match[1]), int(match[2]), int(match[3])
        if not lo < hi <= len(chains[which].nodes):
            raise NoSuchSetting(f"assembly: {said!r} names no blocks of {match[1]!r}, which has [0:{len(chains[which].nodes)}]")
        block = make_block(chains[which], match[1], stage, stage, lo, hi)
        if other := next((one for one in found if set(one.nodes) & set(block.nodes)), None):
            raise NoSuchSetting(f"assembly: {said!r} and {other.name!r} have blocks in common, and each is there once")
        found.append(block)
    return found


def only_plan(steps: Route, blocks: Sequence[Block], wishes: Wishes) -> Plan:
    """The plan of pieces that were named.

    Raises:
        Unfit: they cannot follow each other, or do not keep the limits.
    """
    if len(steps) < len(blocks):
        raise Unfit(f"{blocks[len(steps)].name!r} is made of convolutions and cannot follow {blocks[len(steps) - 1].name!r}, which "
                    "gives out tokens")
    if not wishes.limits.keeps(steps):
        parameters, operations = totals(steps)
        raise Unfit(f"{' '.join(wishes.assembly)} has {parameters / MILLION:.4g} M parameters and {operations / BILLION:.4g} G "
                    f"operations, and does not keep the limits, {wishes.limits}")
    return write_plan(steps, blocks, None, 0)


def write_plan(route: Route, blocks: Sequence[Block], score: float | None, scored: int) -> Plan:
    """A route as a plan."""
    taken = [blocks[step.block] for step in route]
    return Plan([block.name for block in taken], [step.joint for step in route],
                [[node.path for node in block.nodes] for block in taken], taken[-1].nodes[-1].out, *totals(route), score, scored)


def build(zoo: Zoo, route: Route, blocks: Sequence[Block]) -> Net:
    """The network of a route, with the models' own blocks, and new numbers between them."""
    first = next(zoo.parameters())
    taken = [blocks[step.block] for step in route]
    stem, stitches = Stem(taken[0].nodes[0].width), [Stitch(step.joint) for step in route]
    for module in (stem, *stitches):
        module.to(first.device)
    return Net(stem, stitches, [[zoo.get_submodule(node.path) for node in block.nodes] for block in taken])

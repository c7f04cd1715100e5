"""The blocks of the models in a zoo as nodes of chains, and what they see in a few pictures.

Deep Model Reassembly (Yang, Zhou, Liu, Ye, Wang; NeurIPS 2022, arXiv:2210.17409).
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.errors import Unfit
from ..core.hooks import main
from ..core.probe import run_once
from ..core.roles import blocks
from ..rank.naswot import agreement
from .zoo import Alone, Trunk, Zoo, path_of


@dataclass(frozen=True)
class Node:
    """One block of one model: it takes maps [B, width, side, side] or, where it is said to, ``tokens`` [B, about side², width].

    ``next`` is the path of the one that runs behind it there, or empty.
    """

    path: str
    base: int
    tokens: bool
    width: int
    out: int
    side: int
    next: str = ""


@dataclass
class Chain:
    """The nodes of one model, in the order in which they run, with what went in and came out of each: means over places
    [pictures, width]. ``agreements`` [B, B] count the units of a node that agree on two of the first pictures."""

    nodes: list[Node] = field(default_factory=list)
    entering: list[Tensor] = field(default_factory=list)
    leaving: list[Tensor] = field(default_factory=list)
    agreements: list[Any] = field(default_factory=list)


def read_chains(zoo: Zoo, batches: Sequence[Tensor]) -> list[Chain]:
    """The chains of all models, by one look at ``batches`` of pictures [B, 3, h, w].

    Raises:
        Unfit: a model has no blocks, or blocks that cannot be taken apart.
    """
    return [read_chain(zoo.trunk, i, batches) for i in range(len(zoo.trunk))]


def read_chain(trunk: Trunk, i: int, batches: Sequence[Tensor]) -> Chain:
    """The chain of the i-th model.

    Raises:
        Unfit: see ``read_chains``.
    """
    base, name = trunk.base(i), trunk.names[i]
    paths = list(blocks(base))
    if not paths:
        raise Unfit(f"{name!r} ({type(base).__name__}) has no blocks that could be cut out of it")
    looks = [Look(base.get_submodule(path), path, name) for path in paths]
    order: list[Look] = []
    try:
        for number, pixels in enumerate(batches):
            order = []
            for look in looks:
                look.begin(order, count=number == 0)
            run_once(Alone(trunk, i), (pixels,))
            refuse_repeats(order, looks)
    finally:
        for look in looks:
            look.end()
    chain, places = Chain(), [f"trunk.{path_of(i)}.{look.path}" for look in order]
    for look, path, following in zip(order, places, [*places[1:], ""], strict=True):
        entering, leaving = (torch.cat(side) for side in (look.entering, look.leaving))
        chain.nodes.append(Node(path, i, look.tokens, entering.shape[1], leaving.shape[1], look.side, following))
        chain.entering.append(entering)
        chain.leaving.append(leaving)
        chain.agreements.append(look.agreement)
    return chain


class Look:
    """Watches one block while its model runs."""

    def __init__(self, module: nn.Module, path: str, name: str) -> None:
        self.module, self.path, self.name = module, path, name
        self.entering: list[Tensor] = []
        self.leaving: list[Tensor] = []
        self.agreement: Any = None
        self.tokens, self.side, self.busy, self.count = False, 0, False, False
        self.gave: Tensor | None = None  # until the next block has begun
        self.order: list[Look] = []
        self.handles = [module.register_forward_pre_hook(self.before, with_kwargs=True), module.register_forward_hook(self.after)]

    def begin(self, order: list[Look], count: bool) -> None:
        """A batch is about to come; blocks that run write themselves down in ``order``."""
        self.order, self.count = order, count

    def end(self) -> None:
        """Watch no longer."""
        for handle in self.handles:
            handle.remove()

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuses blocks that need more than what the block before gave out; keeps means over places."""
        if self.busy:
            return
        more = [value for value in (*args[1:], *kwargs.values()) if value is not None and value is not False]
        if more or not args or not isinstance(args[0], Tensor):
            raise Unfit(self.cannot(f"is given more than one tensor ({len(args)} values and {sorted(kwargs)})"))
        x = args[0]
        if self.order:
            refuse_gap(self.order[-1], self, x)
        self.tokens, self.side = self.shape_of(x)
        self.entering.append(average(x))

    def after(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """Keeps means over places, and counts agreements."""
        if self.busy:
            return
        self.order.append(self)
        self.gave = y = main(out)
        if self.shape_of(y)[0] != self.tokens:
            raise Unfit(self.cannot("takes maps and gives out tokens, or the other way round"))
        self.leaving.append(average(y))
        if self.count:
            self.agreement = self.agree(args[0])

    def shape_of(self, x: Tensor) -> tuple[bool, int]:
        """Whether these are tokens, and the side of the square that they, or the map, fill."""
        if x.dim() == 3:
            return True, max(1, int(x.shape[1] ** 0.5))
        if x.dim() != 4 or not any(isinstance(inner, nn.Conv2d) for inner in self.module.modules()):
            raise Unfit(self.cannot(f"takes or gives out {list(x.shape)}, which is neither a map for convolutions nor tokens"))
        return False, x.shape[2]

    def agree(self, x: Tensor) -> Any:
        """How many of the block's units agree on each two pictures [B, B]; zeros where none of them counts."""
        self.busy = True
        try:
            return agreement(self.module, (x,), "dery")
        except Unfit:
            return np.zeros((len(x), len(x)))
        finally:
            self.busy = False

    def cannot(self, why: str) -> str:
        """The message that this block is none that could be taken out."""
        return f"the block {self.path!r} of {self.name!r} ({type(self.module).__name__}) cannot be cut out: it {why}"


def average(x: Tensor) -> Tensor:
    """Means over places of maps [B, C, h, w] or tokens [B, n, C], [B, C]."""
    return x.detach().mean(1 if x.dim() == 3 else (2, 3)).double().cpu()


def refuse_gap(one: Look, two: Look, given: Tensor) -> None:
    """Raises: Unfit where the second block is not given what the first one gave."""
    gave, one.gave = one.gave, None
    if gave is None or gave is not given and not (gave.shape == given.shape and torch.equal(gave, given)):
        raise Unfit(f"between the blocks {one.path!r} and {two.path!r} of {one.name!r} something runs that belongs to neither, so "
                    "that they cannot be cut apart")


def refuse_repeats(order: Sequence[Look], looks: Sequence[Look]) -> None:
    """Raises: Unfit where a block did not run exactly once."""
    for look in looks:
        if (times := sum(one is look for one in order)) != 1:
            raise Unfit(look.cannot(f"runs {times} times for a picture"))

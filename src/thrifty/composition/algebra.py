"""The algebra of adapters: how several act as one. An expression is a tree of these nodes with adapters as its leaves.

The meanings are those of AdapterHub (J. Pfeiffer et al., "AdapterHub: A Framework for Adapting Transformers", EMNLP 2020,
arXiv:2007.07779; C. Poth et al., "Adapters: A Unified Library", EMNLP 2023, arXiv:2311.11077).
"""
from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import Method
from ..core.building import NAME
from ..core.errors import CannotCombine, NoSuchSetting

Leaf = str | os.PathLike[str] | Method
Plain = dict[str, Any]


class Node:
    """An inner node. ``parts`` are nodes, folders of saved adapters, or methods whose edits are new and will train."""

    op = ""
    parts: tuple[Any, ...]

    def numbers(self) -> Plain:
        """What the node needs besides its parts, as plain data."""
        return {}


class Stack(Node):
    """Each part reads what the one before it made; all share the residual of the first. ``Stack(a)`` is ``a``.

    For parts that add something which depends on the site's input alone (LoRA) that is the sum of what they add.
    """

    op = "stack"

    def __init__(self, *parts: Any):
        self.parts = _several(self, parts)


class Average(Node):
    """The weighted average of what the parts give out. Weights are normalised to sum to one; without any they are equal."""

    op = "average"

    def __init__(self, *parts: Any, weights: tuple[float, ...] | list[float] | None = None):
        self.parts = _several(self, parts)
        weights = [1.0] * len(parts) if weights is None else list(weights)
        if len(weights) != len(parts) or not all(math.isfinite(w) and w >= 0 for w in weights) or not sum(weights) > 0:
            raise CannotCombine(f"Average of {len(parts)} parts needs as many weights of at least 0, with a sum above 0; "
                                f"not {weights}")
        self.weights = [w / sum(weights) for w in weights]

    def numbers(self) -> Plain:
        """The normalised weights."""
        return {"weights": self.weights}


class Split(Node):
    """The first ``at[0]`` tokens go through the first part, the tokens from there to ``at[1]`` through the second, and so on."""

    op = "split"

    def __init__(self, *parts: Any, at: int | tuple[int, ...] | list[int]):
        self.parts = _several(self, parts)
        self.at = [at] if isinstance(at, int) else list(at)
        if len(self.at) != len(parts) - 1 or any(lo >= hi for lo, hi in zip([0, *self.at], self.at, strict=False)):
            raise CannotCombine(f"Split of {len(parts)} parts needs {len(parts) - 1} rising positions above 0, not {self.at}")

    def numbers(self) -> Plain:
        """Where the tokens are cut."""
        return {"at": self.at}


class Fuse(Node):
    """AdapterFusion: attention over what the parts add, per token and per layer, with new weights that train.

    ``value`` gives the values a matrix of their own, ``dropout`` drops scores before the softmax, and ``temperature`` is what
    the scores are divided by.
    """

    op = "fuse"

    def __init__(self, *parts: Any, value: bool = True, dropout: float = 0.0, temperature: float = 1.0):
        self.parts = _several(self, parts)
        if not 0 <= dropout < 1 or not temperature > 0:
            raise NoSuchSetting(f"Fuse: dropout is in [0, 1) and temperature above 0, not {dropout} and {temperature}")
        self.settings = {"value": value, "dropout": dropout, "temperature": temperature}

    def numbers(self) -> Plain:
        """The settings of the fusion."""
        return self.settings


class Rows(Node):
    """Every row of a batch goes through the part that ``thrifty.task`` names for it: ``Rows({"en": ..., "de": ...})``."""

    op = "rows"

    def __init__(self, parts: Mapping[str, Any]):
        self.names = list(parts)
        self.parts = _several(self, tuple(parts.values()))

    def numbers(self) -> Plain:
        """The names of the parts."""
        return {"names": self.names}


class Parallel(Rows):
    """Every part answers to the whole batch: the model gives [parts x batch] rows, those of the first part first.

    What lies below the first place where the parts act is computed once for all of them.
    """

    op = "parallel"


@dataclass(frozen=True)
class Named:
    """A leaf with the name that it has in the composition."""

    name: str
    source: Leaf


def named(tree: Any) -> tuple[Any, list[Named]]:
    """The tree with a `Named` in the place of every leaf, and all of these from left to right.

    Raises:
        CannotCombine: something in the tree is no node, folder or method.
    """
    found: list[Named] = []

    def walk(part: Any, hint: str) -> Any:
        if isinstance(part, Node):
            hints = part.names if isinstance(part, Rows) else [hint] * len(part.parts)
            return part, tuple(walk(p, h) for p, h in zip(part.parts, hints, strict=True))
        if isinstance(part, Named):
            found.append(part)
            return part
        if not isinstance(part, (str, os.PathLike, Method)):
            raise CannotCombine(f"{part!r} ({type(part).__name__}) is no folder of an adapter, method or composition")
        found.append(Named(_name(part, hint, [leaf.name for leaf in found]), part))
        return found[-1]

    return walk(tree, ""), found


def _name(part: Leaf, hint: str, taken: list[str]) -> str:
    if isinstance(part, Method):
        wanted = hint or part.name
    else:
        path = Path(part)
        wanted = hint or (path.parent.name if path.name == "adapter" else path.name)
    wanted = "".join(c if c.isalnum() or c in "_-" else "-" for c in wanted) or "part"
    wanted = (wanted if NAME.match(wanted) else f"a-{wanted}")[:48]
    count, name = 2, wanted
    while name in taken:
        count, name = count + 1, f"{wanted}-{count}"
    return name


def _several(node: Node, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    if not parts:
        raise CannotCombine(f"{type(node).__name__} of nothing")
    return parts


def above(tree: Any) -> Iterator[tuple[Named, tuple[tuple[Node, int], ...]]]:
    """Every leaf of a `named` tree with the way down to it: (node, number of the part) from the root on."""

    def walk(part: Any, way: tuple[tuple[Node, int], ...]) -> Iterator[tuple[Named, tuple[tuple[Node, int], ...]]]:
        if isinstance(part, Named):
            yield part, way
            return
        node, parts = part
        for i, inner in enumerate(parts):
            yield from walk(inner, (*way, (node, i)))

    yield from walk(tree, ())

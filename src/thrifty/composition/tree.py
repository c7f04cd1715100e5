"""Trees of parts as plain data, as a composed edit keeps them in its plan; and the arithmetic of what their parts give."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

Tree = dict[str, Any]


def leaves(node: Tree) -> Iterator[Tree]:
    """The leaves from left to right."""
    if "part" in node:
        yield node
    else:
        for part in node["parts"]:
            yield from leaves(part)


def nodes(node: Tree, way: str = "") -> Iterator[tuple[str, Tree]]:
    """The inner nodes, each with the way to it: "_" for the root, else the numbers of the parts on the way, "_0_1"."""
    if "part" not in node:
        yield way or "_", node
        for i, part in enumerate(node["parts"]):
            yield from nodes(part, f"{way}_{i}")


def mean(values: list[Tensor], weights: list[float]) -> Tensor:
    """The weighted sum; the weights of an average sum to one."""
    total = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total = total + value * weight
    return total


def cut(values: list[Tensor], at: list[int]) -> Tensor:
    """Tokens (dimension 1) from one value after the other."""
    edges = [0, *at, values[0].shape[1]]
    return torch.cat([value[:, lo:hi] for value, lo, hi in zip(values, edges, edges[1:], strict=False)], 1)

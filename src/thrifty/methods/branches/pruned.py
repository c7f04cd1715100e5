"""Structural pruning: the first values of a narrow copy of a trunk are those rows and columns of its weights that matter most.

From LST (Sung, Cho, Bansal; NeurIPS 2022, arXiv:2206.06522), after Pruning Filters for Efficient ConvNets (Li, Kadav, Durdanovic,
Samet, Graf; ICLR 2017, arXiv:1608.08710). One set K of kept positions is led through the layers in the order in which they run:
a weight keeps its columns K, its rows are ranked by the L1 norm of their importance, and the best of them are the next K. So q,
k and v keep the same rows, by the product of their importances, and so do the two halves of a gated network; the channels of
the residual stream change from layer to layer, and from the encoder to the decoder K goes on.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...core import Site, base
from ...core.drawing import is_drawing
from ...core.errors import ThriftyError, Unfit
from ...core.part import Part
from ...core.weight import read
from ..sparse.squared_gradients import of_weight, squared_gradients
from .ladder import tail
from .side import Stack

if TYPE_CHECKING:
    from ...core import Attachment

Importance = Callable[[Site], Tensor]  # of each entry of a site's weight [out, in, ...]
LAYERS = {"attn": (("attn.q", "attn.k", "attn.v"), "attn.o"), "cross": (("attn.q", "attn.k", "attn.v"), "attn.o"),
          "mlp": (("mlp.in", "mlp.gate"), "mlp.out")}  # roles of the first layers of each part of a block, and of its last


@dataclass
class Step:
    """One weight on the way: which ``rows`` of it are kept, and which ``columns``; a normalisation has no columns."""

    site: Site
    rows: Tensor
    columns: Tensor | None = None


def weigh(at: Attachment, init: str, batches: Iterable[Any] | None, examples: int) -> Importance | None:
    """How much the trunk's weights matter: by their values ("magnitude"), or by their squared gradients ("fisher").

    None where it is not asked for, and where a model has no numbers.

    Raises:
        ThriftyError: "fisher" without data. Unfit: a quantised trunk, whose weights have no gradient.
    """
    own = dict(base.parameters(at.model))
    if init == "random" or is_drawing(next(iter(own.values()))):
        return None
    if init == "magnitude":
        return lambda site: site.weight.detach()
    if batches is None:
        raise ThriftyError("LST starts from the weights that matter for the data: attach with batches= (dicts of tensors, with "
                           "labels), or set init='magnitude'")
    sums = squared_gradients(at.model, own, _rows(batches), examples, ", or set init='magnitude'")
    return lambda site: of_weight(sums, at.model, site)


def _rows(batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """The rows of all batches, each a batch of one."""
    for batch in batches:
        for i in range(len(next(v for v in batch.values() if isinstance(v, Tensor)))):
            yield {name: v[i : i + 1] if isinstance(v, Tensor) else v for name, v in batch.items()}


def walk(at: Attachment, stacks: list[Stack], importance: Importance, by: int) -> Iterator[Step]:
    """Every weight of the stacks in the order in which they run, with what is kept of it.

    Raises:
        Unfit: a block is not made of attention and a feed-forward network with a normalisation each.
    """
    every = at.sites("*")
    start = next(site for site in every if site.role in ("embed", "patch"))
    K = best(importance(start).flatten(1), by)
    for stack in stacks:
        for block in stack.blocks:
            inside = [site for site in every if site.path.startswith(block.path + ".")]
            for part, before, after in _parts(block, inside):
                yield from (Step(norm, K) for norm in before)
                firsts, last = _weights(inside, part)
                middle = K
                for group in _groups(firsts):
                    joint = torch.stack([importance(site)[:, K] for site in group]).prod(0)
                    rows = best(joint, by)
                    yield from (Step(site, rows, K) for site in group)
                    middle = rows if group[0].role in ("attn.q", "mlp.in") else middle
                K = best(importance(last)[:, middle], by)
                yield Step(last, K, middle)
                yield from (Step(norm, K) for norm in after)
        final, _ = tail(at.model.get_submodule(stack.holder), stack.list)
        yield from (Step(site, K) for site in every if final is not None and site.module is final)


def best(importance: Tensor, by: int) -> Tensor:
    """Positions, rising, of the rows of ``importance`` [rows, columns] with the largest L1 norms, one in ``by``."""
    norms = importance.abs().sum(1)
    return norms.topk(len(norms) // by).indices.sort().values


def _parts(block: Site, inside: list[Site]) -> Iterator[tuple[str, list[Site], list[Site]]]:
    """The parts that a block has, in order, with the normalisations before and after each."""
    crosses = any(site.role == "attn.o" and "cross" in site.within for site in inside)
    have = ["attn", *(["cross"] if crosses else []), "mlp"]
    before = [site for site in inside if site.role == "norm"]
    ends = [site.role for site in inside if site.role in ("attn.o", "mlp.out")]
    if len(before) not in (0, len(have)) or len(ends) != len(have):
        raise Unfit(f"{block.path!r} ({type(block.module).__name__}) has {len(before)} normalisations before {len(ends)} layers "
                    f"that end {have}: the order of its weights is not known, so set init='random'")
    for i, part in enumerate(have):
        yield part, before[i : i + 1], [site for site in inside if site.role == f"norm.{part}"]


def _weights(inside: list[Site], part: str) -> tuple[list[Site], Site]:
    """The first layers of a part of a block, and its last."""
    firsts, last = LAYERS[part]
    own = [site for site in inside if part == "mlp" or ("cross" in site.within) == (part == "cross")]
    return [s for role in firsts for s in own if s.role == role], next(s for s in own if s.role == last)


def _groups(firsts: list[Site]) -> list[list[Site]]:
    """Layers that keep the same rows: all of them, but where keys and values have fewer heads than queries."""
    widths = list(dict.fromkeys(site.dout for site in firsts))
    return [[site for site in firsts if site.dout == width] for width in widths]


@torch.no_grad()
def fill(at: Attachment, stacks: list[Stack], ladders: list[Any], importance: Importance, by: int) -> None:
    """Give the side blocks and the side normalisation of every ladder their first values.

    Raises:
        Unfit: a block has a narrower tensor that is neither a layer's nor a normalisation's.
    """
    written: set[int] = set()
    for step in walk(at, stacks, importance, by):
        for stack, ladder in zip(stacks, ladders, strict=True):
            if (target := _narrow(step.site, stack, ladder)) is not None:
                written |= _copy(step, target, by)
    for stack, ladder in zip(stacks, ladders, strict=True):
        for i, rung in zip(ladder.kept, ladder.rungs, strict=True):
            wide = dict(stack.blocks[0].module.named_parameters()) | dict(stack.blocks[i].module.named_parameters())
            for name, p in rung.named_parameters():
                if id(p) in written:
                    continue
                if p.shape != wide[name].shape:
                    raise Unfit(f"{name!r} of {stack.blocks[i].path!r} has no rows that were ranked: set init='random'")
                p.copy_(wide[name])  # such as a table of relative positions, one number per head


def _narrow(site: Site, stack: Stack, ladder: Any) -> Any:
    """The side network's module for the trunk's at ``site``; None if it has none."""
    for i, rung in zip(ladder.kept, ladder.rungs, strict=True):
        if site.path.startswith(f"{stack.blocks[i].path}."):
            return rung.get_submodule(site.path[len(stack.blocks[i].path) + 1 :])
    return ladder.norm if site.path.rpartition(".")[0] == stack.holder and site.role == "norm" else None


def _copy(step: Step, target: Any, by: int) -> set[int]:
    """Write the kept rows and columns into ``target``; which of its parameters were written."""
    site = step.site
    if step.columns is None:
        for name, p in target.named_parameters():
            p.copy_(site.module.get_parameter(name)[step.rows])
    else:
        _write(site.part, by, read(target, site.path), site.weight[step.rows][:, step.columns])
        if site.bias is not None:
            _write(site.part, by, target.bias, site.bias[step.rows])
    return {id(p) for p in target.parameters()}


def _write(part: Part | None, by: int, whole: Tensor, new: Tensor) -> None:
    """``new`` into ``whole``, or into the part of it that is q, k or v."""
    whole.copy_(new if part is None else Part(part.name, part.lo // by, part.hi // by, part.groups).put(whole, new, 0))

"""The residual stream of a pre-norm block, and how a branch beside one of its two halves adds to it:

    x' = x + attention(LN1(x)) + z,   y = x' + network(LN2(x'))

A hook sees x' only where LN2 reads it. So z is added there, and once more where the block gives out its sum, in which x' is the
residual. What scales or drops the block's own sub-layers, or lays their tokens out in windows, does not touch z.

The names of the halves are those of On Layer Normalization in the Transformer Architecture (Xiong et al., ICML 2020,
arXiv:2002.04745).
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ...core import Branch, Edit, Site, register
from ...core.errors import DeadEdit, Unfit
from .operations import by_block, feed_forwards

if TYPE_CHECKING:
    from ...core import Attachment


@dataclass(frozen=True)
class Halves:
    """A pre-norm block: its attention with the norm ``first`` before it, its network from ``reads`` with ``second`` before it."""

    block: Site
    first: Site
    attention: Site
    second: Site
    reads: Site


def halves(at: Attachment, blocks: list[Site]) -> list[Halves]:
    """The halves of all ``blocks``.

    Raises:
        Unfit: a block is not made of attention and feed-forward network, with one norm in front of each.
    """
    norms, attentions, networks = by_block(at, blocks, "norm"), by_block(at, blocks, "attn"), feed_forwards(at, blocks)
    found = []
    for block in blocks:
        own = [n for n in norms[block.path] if not {"attn", "cross", "mlp"} & set(n.within)]
        if len(own) != 2 or len(attentions[block.path]) != 1 or block.path not in networks:
            raise Unfit(f"{block.path!r} ({type(block.module).__name__}) is no pre-norm block, attention and feed-forward network "
                        f"with one norm in front of each: {len(own)} such norms were found")
        found.append(Halves(block, own[0], attentions[block.path][0], own[1], networks[block.path][0]))
    return found


class Aside(Edit):
    """Changes nothing: leaves what ``branch`` makes of the site's output, or input, for a ``Join`` further on."""

    passive = True

    def __init__(self, site: Site, key: str, port: str = "output"):
        super().__init__(site)
        self.key, self.port = key, port

    def branch(self, t: Tensor) -> Tensor:
        """The addition, in the precision of the parameters."""
        raise NotImplementedError

    def forward(self, t: Tensor, x: Tensor | None = None) -> Tensor:
        """t, as it is."""
        self.context.taps[self.key] = self.branch(t)
        return t


@register("join")
class Join(Branch):
    """t + the sum of what was left under ``keys``; the ``last`` one to want it takes it away."""

    additive = True

    def __init__(self, site: Site, keys: list[str], port: str, last: bool = True):
        super().__init__(site)
        self.keys, self.port, self.last = keys, port, last

    def read(self, y: Tensor, x: Tensor) -> Tensor:
        """What was left, added up.

        Raises:
            DeadEdit: nothing was left under one of the keys in this forward pass.
        """
        taps = self.context.taps
        if missing := [key for key in self.keys if key not in taps]:
            raise DeadEdit(f"nothing was left for {self.site.path!r} under {missing[0]!r}: the edit there is off or is never "
                           "reached, so switch both on or off together")
        left = [taps.pop(key) if self.last else taps[key] for key in self.keys]
        total: Tensor = sum(left[1:], left[0])
        return total

    def branch(self, h: Tensor) -> Tensor:
        """h, which is the addition already."""
        return h

    def write(self, y: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """y + z."""
        return y + laid_out(self.site, z, y).to(y.dtype)


def join(at: Attachment, half: Halves, first: list[str], second: list[str]) -> None:
    """Add what is left under ``first`` beside the attention, and under ``second`` beside the feed-forward network."""
    if first:
        at.put(half.second, Join, keys=first, port="input", last=False)
    at.put(half.block, Join, keys=[*first, *second], port="output")


def laid_out(site: Site, z: Tensor, y: Tensor) -> Tensor:
    """z as y is: some models hold tokens as [batch, height, width, d] in one place and as [batch, tokens, d] in another.

    Raises:
        Unfit: the two are not of the same tokens.
    """
    if z.shape == y.shape:
        return z
    if z.shape[0] != y.shape[0] or z.shape[-1] != y.shape[-1] or z.shape[1:-1].numel() != y.shape[1:-1].numel():
        raise Unfit(f"{list(z.shape)} cannot be added to {list(y.shape)} at {site.path!r}: they are not of the same tokens")
    return z.reshape(y.shape)

"""The blocks of a model that read images, and how their tokens lie on the grid of patches, as in

An Image is Worth 16x16 Words (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929), where special tokens stand in front, and
Swin Transformer (Liu et al., ICCV 2021, arXiv:2103.14030), where there are none.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..core import Site
from ..core.errors import NoSuchSite, Unfit

if TYPE_CHECKING:
    from ..core import Attachment

# How models call the tokens that stand in front of the patches.
SPECIAL = ("cls_token", "class_token", "class_embedding", "distillation_token", "dist_token", "reg_token", "register_tokens")


@dataclass(frozen=True)
class Tower:
    """Blocks over patches of images; ``special`` tokens stand in front of the patches."""

    blocks: list[Site]
    special: int


def tower(at: Attachment, where: str) -> Tower:
    """Those blocks that ``where`` names and that read images, in order.

    Raises:
        NoSuchSite: ``where`` names none of them.
        Unfit: the model does not cut images into patches for a stack of blocks.
    """
    kind = type(at.model).__name__
    try:
        patch, every = at.sites("patch")[0], at.sites("block")
    except NoSuchSite:
        raise Unfit(f"{kind} does not cut images into patches for a stack of blocks, as vision transformers do") from None
    near = max(_shared(patch.path, b.stack) for b in every)
    own = [b.path for b in every if _shared(patch.path, b.stack) == near]
    chosen = [b for b in at.sites(where) if b.path in own]
    if not chosen:
        raise NoSuchSite(f"{where!r} names no block of {kind} that reads images: those are {own[0]!r} to {own[-1]!r}")
    return Tower(chosen, _special(at.model))


def as_map(site: Site, t: Tensor, special: int = 0) -> Tensor:
    """t [batch, special + side², d], in rows of the grid, or [batch, height, width, d] -> [batch, d, height, width].

    Raises:
        Unfit: the patches are no square.
    """
    if t.dim() == 4:
        return t.permute(0, 3, 1, 2)
    side = math.isqrt(t.shape[1] - special)
    if side * side != t.shape[1] - special:
        raise Unfit(f"{t.shape[1] - special} patches at {site.path!r} are no square grid, and a convolution over them must know "
                    "where each is: use square images")
    return t[:, special:].transpose(1, 2).unflatten(2, (side, side))


def as_tokens(m: Tensor) -> Tensor:
    """m [batch, d, height, width] -> [batch, height · width, d], in rows of the grid."""
    return m.flatten(2).transpose(1, 2)


def _shared(a: str, b: str) -> int:
    """How many leading parts two paths share."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(a.split("."), b.split("."), strict=False))))


def _special(model: nn.Module) -> int:
    if isinstance(known := getattr(model, "num_prefix_tokens", None), int):  # timm says so itself
        return known
    return sum(p.shape[-2] if p.dim() == 3 else 1 for n, p in model.named_parameters() if n.rpartition(".")[2] in SPECIAL)

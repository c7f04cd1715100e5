"""The blocks of a model that read images, and how their tokens lie on the grid of patches, as in

An Image is Worth 16x16 Words (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929), where special tokens stand in front, and
Swin Transformer (Liu et al., ICCV 2021, arXiv:2103.14030), where there are none.
"""
from __future__ import annotations

import math
from itertools import takewhile
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ...core import Site
from ...core.errors import NoSuchSite, Unfit

if TYPE_CHECKING:
    from ...core import Attachment

# How models call the tokens that stand in front of the patches.
SPECIAL = ("cls_token", "class_token", "class_embedding", "distillation_token", "dist_token", "reg_token", "register_tokens")


def image_tower(at: Attachment) -> tuple[Site, list[Site]]:
    """The patch embedding, and the blocks that read its patches, in order.

    Raises:
        Unfit: the model does not cut images into patches for a stack of blocks.
    """
    try:
        patch, blocks = at.sites("patch")[0], at.sites("block")
    except NoSuchSite:
        raise Unfit(f"{type(at.model).__name__} does not cut images into patches for a stack of blocks, as vision transformers "
                    "do") from None
    near = max(shared(patch.path, b.stack) for b in blocks)
    return patch, [b for b in blocks if shared(patch.path, b.stack) == near]


def choose(at: Attachment, blocks: list[Site], where: str) -> list[Site]:
    """Those of the tower's ``blocks`` that ``where`` names.

    Raises:
        NoSuchSite: none.
    """
    chosen = [b for b in at.sites(where) if any(b.path == t.path for t in blocks)]
    if not chosen:
        raise NoSuchSite(f"{where!r} names no block of the tower of {type(at.model).__name__} that reads images "
                         f"({blocks[0].path!r} to {blocks[-1].path!r})")
    return chosen


def specials(model: nn.Module) -> int:
    """How many tokens stand in front of the patches."""
    if isinstance(known := getattr(model, "num_prefix_tokens", None), int):  # timm says so itself
        return known
    return sum(p.shape[-2] if p.dim() == 3 else 1 for n, p in model.named_parameters() if n.rpartition(".")[2] in SPECIAL)


def shared(a: str, b: str) -> int:
    """How many leading parts two paths share."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(a.split("."), b.split("."), strict=False))))


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

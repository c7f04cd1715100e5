"""VPT: Visual Prompt Tuning (Jia, Tang, Chen, Cardie, Belongie, Hariharan, Lim; ECCV 2022, arXiv:2203.12119)."""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import Edit, Method, Site, need, register
from ..core.errors import NoSuchSite, Unfit

if TYPE_CHECKING:
    from ..core import Attachment

# How models call the tokens that stand in front of the patches.
SPECIAL = ("cls_token", "class_token", "class_embedding", "distillation_token", "dist_token", "reg_token", "register_tokens")


@register("tokens")
class Tokens(Edit):
    """[special, P, patches] at the input of a block; P [length, d] ~ U(-span, span), with no position embedding.

    The ``first`` such edit inserts P, later ones write theirs over it. Each image has a dropout mask of its own.
    """

    port = "input"

    def __init__(self, site: Site, length: int, special: int, first: bool, span: float, dropout: float = 0.0):
        super().__init__(site)
        self.special, self.after, self.dropout = special, special + (0 if first else length), nn.Dropout(dropout)
        self.prompt = nn.Parameter(torch.empty(length, site.din).uniform_(-span, span))

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, d] -> [batch, tokens, d], with ``length`` tokens more if this is the first."""
        prompt = self.dropout(self.prompt.expand(len(x), -1, -1)).to(x.dtype)
        return torch.cat([x[:, : self.special], prompt, x[:, self.after :]], 1)


@register("tokens-off")
class TokensOff(Edit):
    """Takes the prompt's tokens away after the last block, so that a head which averages over patches sees those alone."""

    def __init__(self, site: Site, length: int, special: int):
        super().__init__(site)
        self.length, self.special = length, special

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [batch, tokens, d] -> [batch, tokens - length, d]."""
        return torch.cat([y[:, : self.special], y[:, self.special + self.length :]], 1)


@dataclass
class VPT(Method):
    """Learned tokens between the class token and the patches, and a new head (attach with ``also_train="head"``).

        deep     [x_i, _, E_i] = B_i([x_{i-1}, P_{i-1}, E_{i-1}])   each block's tokens replace the last one's
        shallow  the tokens enter at the first block and flow on (``deep=False``)

    P ~ U(-v, v), v = sqrt(6 / (3 p p + d)) for patches of p × p. The authors keep the backbone's own dropout off while they
    train, and choose the length from 1 to 200. ``where`` names blocks, all in one tower that reads images.
    """

    name = "vpt"
    aliases = ("vpt-deep",)
    presets = {"vpt-shallow": {"deep": False, "dropout": 0.0}}
    route = "input and output"
    modalities = ("image",)
    paper = "Jia et al., Visual Prompt Tuning, ECCV 2022, arXiv:2203.12119"
    trains = "tokens beside the patches, at every block"
    inference = "`length` tokens more"
    Edit = Tokens
    identity_at_start = False
    rate = 1e-3

    length: int = 10
    deep: bool = True
    dropout: float = 0.1
    where: str = "block"

    def check(self) -> None:
        """Lengths are positive, dropout is a probability."""
        need(self.length >= 1, self, "length", "at least 1")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Tokens in at the chosen blocks, and out after the last block of the tower.

        Raises:
            Unfit: the model has no patches, or its attention is tied to their grid (Swin, BEiT).
        """
        patch, tower = _tower(at)
        chosen = [b for b in at.sites(self.where) if any(b.path == t.path for t in tower)]
        if not chosen:
            raise NoSuchSite(f"{self.where!r} names no block of the tower of {type(at.model).__name__} that reads images "
                             f"({tower[0].path!r} to {tower[-1].path!r})")
        special = _special(at.model)
        kernel: Any = getattr(patch.module, "kernel_size", None)
        span = math.sqrt(6 / (3 * math.prod(kernel or (1,)) + chosen[0].din))
        for i, block in enumerate(chosen if self.deep else chosen[:1]):
            at.put(block, Tokens, length=self.length, special=special, first=i == 0, span=span, dropout=self.dropout)
        at.put(tower[-1], TokensOff, length=self.length, special=special)


def _tower(at: Attachment) -> tuple[Site, list[Site]]:
    """The patch embedding, and the blocks of the tower that it begins."""
    kind = type(at.model).__name__
    try:
        patch, blocks = at.sites("patch")[0], at.sites("block")
    except NoSuchSite:
        raise Unfit(f"{kind} does not cut images into patches for blocks of attention, so tokens have no place in it") from None
    near = max(_shared(patch.path, b.stack) for b in blocks)
    tower = [b for b in blocks if _shared(patch.path, b.stack) == near]
    if len({b.path.rpartition(".")[0] for b in tower}) > 1:
        raise Unfit(f"{kind} has several stages of blocks: tokens cannot pass its windows and its merging of patches; VPT "
                    "needs a plain vision transformer")
    grid = [n for n, _ in at.model.named_parameters() if "relative_position_bias" in n and _shared(n, tower[0].path) >= near]
    if grid:
        raise Unfit(f"{kind} adds a bias for each pair of patches ({grid[0]!r}), which does not grow with tokens; VPT needs a "
                    "vision transformer with absolute positions")
    if not any(s.path.startswith(tower[0].path + ".") for s in at.sites("attn.?")):
        raise Unfit(f"{tower[0].path!r} ({type(tower[0].module).__name__}) computes no attention over patches")
    return patch, tower


def _shared(a: str, b: str) -> int:
    """How many leading parts two paths share."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(a.split("."), b.split("."), strict=False))))


def _special(model: nn.Module) -> int:
    """How many tokens stand in front of the patches."""
    if isinstance(known := getattr(model, "num_prefix_tokens", None), int):  # timm says so itself
        return known
    return sum(p.shape[-2] if p.dim() == 3 else 1 for n, p in model.named_parameters() if n.rpartition(".")[2] in SPECIAL)

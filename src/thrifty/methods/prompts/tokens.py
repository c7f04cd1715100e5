"""Learned tokens among those of a plain vision transformer: what puts them there, what takes them away, what reads them.

As in Visual Prompt Tuning (Jia, Tang, Chen, Cardie, Belongie, Hariharan, Lim; ECCV 2022, arXiv:2203.12119), and all that grew
from it.
"""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...core import Edit, Shared, Site, register
from ...core.errors import Unfit
from ..features.tower import image_tower, shared

if TYPE_CHECKING:
    from ...core import Attachment

GATHERED = "what the learned tokens became"


@register("token-projection")
class Projection(Shared):
    """P W + b, one for the tokens [length, narrow] of all blocks: W [d, narrow] Kaiming-normal over what goes out."""

    def __init__(self, narrow: int, width: int):
        super().__init__()
        self.linear = nn.Linear(narrow, width)
        nn.init.kaiming_normal_(self.linear.weight, mode="fan_out")

    def forward(self, prompt: Tensor) -> Tensor:
        """[length, narrow] -> [length, d]."""
        projected: Tensor = self.linear(prompt)
        return projected


@register("tokens")
class Tokens(Edit):
    """[special, P, patches] at the input of a block; P [length, d] ~ U(-span, span), with no position embedding.

    The ``first`` such edit inserts P, later ones write theirs over it. Each image has a dropout mask of its own. With ``narrow``
    P is [length, narrow] and goes through the ``Projection`` that all share. ``drop`` tokens behind P are left out.
    """

    port = "input"

    def __init__(self, site: Site, length: int, special: int, first: bool, span: float, dropout: float = 0.0, narrow: int = 0,
                 drop: int = 0):
        super().__init__(site)
        self.special, self.after, self.dropout = special, special + drop + (0 if first else length), nn.Dropout(dropout)
        self.narrow = narrow
        self.prompt = nn.Parameter(torch.empty(length, narrow or site.din).uniform_(-span, span))

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, d] -> [batch, tokens, d], with ``length`` tokens more if this is the first."""
        prompt = self.context.shared(self.prompt) if self.narrow else self.prompt
        prompt = self.dropout(prompt.expand(len(x), -1, -1)).to(x.dtype)
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


@register("tokens-read")
class TokensRead(Edit):
    """After the last normalisation: the mean over the learned tokens stands where the head reads the class token.

    The learned tokens start behind ``special`` others and are taken away; with ``special`` 0 there is no class token, and the
    mean comes in front. All of them [batch, length * d] are left for a head that wants them one by one.
    """

    def __init__(self, site: Site, length: int, special: int):
        super().__init__(site)
        self.length, self.special = length, special

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [batch, tokens, d] -> [batch, tokens - length, d], or one more if there was no class token.

        Raises:
            Unfit: the normalisation does not see tokens.
        """
        if y.dim() != 3:
            raise Unfit(f"{self.site.path!r} normalises one vector per image, so the learned tokens cannot be read behind it")
        end = self.special + self.length
        learned = y[:, self.special : end]
        self.context.taps[GATHERED] = learned.flatten(1)
        return torch.cat([learned.mean(1, keepdim=True), y[:, 1 : self.special], y[:, end:]], 1)


def tower(at: Attachment) -> tuple[Site, list[Site]]:
    """The patch embedding, and the blocks of the tower that it begins, where tokens have a place.

    Raises:
        Unfit: the model has no patches, or its attention is tied to their grid (Swin, BEiT).
    """
    kind, (patch, found) = type(at.model).__name__, image_tower(at)
    if len({b.path.rpartition(".")[0] for b in found}) > 1:
        raise Unfit(f"{kind} has several stages of blocks: tokens cannot pass its windows and its merging of patches; this "
                    "method needs a plain vision transformer")
    near = shared(patch.path, found[0].stack)
    grid = [n for n, _ in at.model.named_parameters() if "relative_position_bias" in n and shared(n, found[0].path) >= near]
    if grid:
        raise Unfit(f"{kind} adds a bias for each pair of patches ({grid[0]!r}), which does not grow with tokens; this method "
                    "needs a vision transformer with absolute positions")
    if not any(s.path.startswith(found[0].path + ".") for s in at.sites("attn.?")):
        raise Unfit(f"{found[0].path!r} ({type(found[0].module).__name__}) computes no attention over patches")
    return patch, found


def span_of(patch: Site, width: int) -> float:
    """v = sqrt(6 / (3 p p + width)), the bound of the tokens' first values, for patches of p × p."""
    kernel: Any = getattr(patch.module, "kernel_size", None)
    return math.sqrt(6 / (3 * math.prod(kernel or (1,)) + width))


def last_norm(at: Attachment, blocks: list[Site]) -> Site:
    """The normalisation of all tokens behind the last block, out of which the head reads the class token.

    Raises:
        Unfit: there is none, or the head reads the mean over patches instead.
    """
    kind, order = type(at.model).__name__, [path for path, _ in at.model.named_modules()]
    behind = [s for s in at.sites("norm") if s.depth < 0 and order.index(s.path) > order.index(blocks[-1].path)]
    if not behind or getattr(at.model, "global_pool", "token") not in ("token", ""):
        raise Unfit(f"{kind} reads no class token out of a last normalisation, in whose place learned tokens could be read")
    return behind[0]

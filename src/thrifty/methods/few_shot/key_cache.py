"""Kept features of labelled pictures, which answer for new ones that lie near them:

Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification (Zhang, Fang, Zhang, Gao, Li, Dai, Qiao, Li; ECCV 2022,
arXiv:2207.09519).
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core import Edit, Site, register
from ..prompts.context import refuse_others
from .grid_search import Setting
from .support import Seen

Grids = Mapping[str, list[float]]


@register("key-cache")
class KeyCache(Edit):
    """logits = s f W + alpha exp(-beta (1 - A)) L,  A = f F^T, with f and the columns of W of length one.

    Keys F [M, d], one a kept picture, of length one at the start; L [M, K] says of which class each is, and is kept as
    ``labels`` [M]. s is ``scale``, or the model's own where that is 0. The keys are ``trained`` or fixed. alpha and beta are kept
    beside them, so that a search may change them.
    """

    port = "around"
    keys: Tensor
    labels: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, site: Site, names: list[str], rows: int, width: int, alpha: float, beta: float, scale: float = 100.0,
                 trained: bool = False):
        super().__init__(site)
        self.names, self.scale = names, scale
        keys = torch.zeros(rows, width)
        if trained:
            self.keys = nn.Parameter(keys)
        else:
            self.register_buffer("keys", keys)
        self.register_buffer("labels", torch.zeros(rows, dtype=torch.long))
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("beta", torch.tensor(float(beta)))

    @torch.no_grad()
    def fill(self, support: Seen) -> None:
        """Keep the support set."""
        self.keys.copy_(support.unit)
        self.labels.copy_(support.labels)

    def affinity(self, f: Tensor) -> Tensor:
        """A [B, M] of unit features f [B, d]."""
        return f @ self.keys.T

    def values(self) -> Tensor:
        """L [M, K]."""
        return F.one_hot(self.labels, len(self.names)).to(self.keys.dtype)

    def cosines(self, f: Tensor, cosines: Tensor) -> Tensor:
        """f W [B, K]."""
        return cosines

    def start(self, f: Tensor, cosines: Tensor) -> Tensor:
        """s f W [B, K]."""
        scores: Any = self.site.module
        return (self.scale or scores.towers.scale()) * self.cosines(f, cosines)

    def addition(self, f: Tensor, cosines: Tensor) -> Tensor:
        """What the cache adds [B, K]."""
        return self.alpha * ((-self.beta * (1 - self.affinity(f))).exp() @ self.values())

    def forward(self, run: Any, image: Tensor, classes: Tensor) -> Tensor:
        """Unit features image [B, d] and classes [K, d] -> logits [B, K]."""
        scores: Any = self.site.module
        refuse_others(self, scores.texts)
        cosines = scores.cosines(image, classes)
        f, own = image.to(self.keys.dtype), cosines.to(self.keys.dtype)
        return (self.start(f, own) + self.addition(f, own)).to(cosines.dtype)

    # -- the search -------------------------------------------------------------------------------------------------------
    def look(self, f: Tensor, cosines: Tensor) -> None:
        """See all pictures of the search before it begins."""

    def tried(self, f: Tensor, cosines: Tensor, grids: Grids) -> Iterator[tuple[Setting, Tensor]]:
        """Logits of pictures under every setting of the ``grids``: betas outside, alphas inside."""
        start, apart, values = self.start(f, cosines), 1 - self.affinity(f), self.values()
        for beta in grids["beta"]:
            cache = (-beta * apart).exp() @ values
            for alpha in grids["alpha"]:
                yield {"beta": beta, "alpha": alpha}, start + alpha * cache

    @torch.no_grad()
    def settle(self, setting: Setting) -> None:
        """From now on answer with this setting."""
        for name, value in setting.items():
            getattr(self, name).fill_(value)

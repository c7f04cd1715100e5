"""Which models see which pictures: Hub-Pathway (Shu, Cao, Zhang, Wang, Long; NeurIPS 2022, arXiv:2206.03726)."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Edit, Site, register
from .zoo import Pooled

CHANNELS = (3, 16, 32, 64)  # of the picture, and of the small network's three convolutions, each of which halves it


@dataclass(frozen=True)
class Said:
    """Of one batch: weights w [B, m] over all models, and for each model the rows that it saw and what it made of them."""

    weights: Tensor
    seen: list[tuple[Tensor, Tensor]]


@register("pathway")
class Pathway(Edit):
    """For each picture the ``top`` of m models that a small network chooses; the others do not run on it.

        u(x) = G(x) + eps softplus(N(x)), eps ~ N(0, I) while ``exploring`` and else 0;   w = softmax(u)
        r_i = w_i over the sum of the top w, where w_i is among them, and else 0
        answer: [r_1 f_1(x) ; ... ; r_m f_m(x)]

    G and N are linear in what three convolutions make of the picture. While a graph is compiled all models run for all pictures:
    the same answer.
    """

    port = "around"
    said: Said | None

    def __init__(self, site: Site, widths: list[int], top: int):
        super().__init__(site)
        self.widths, self.top = widths, top
        pairs = zip(CHANNELS, CHANNELS[1:], strict=False)
        self.look = nn.Sequential(*[nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU()) for a, b in pairs])
        self.choose, self.noise = nn.Linear(CHANNELS[-1], len(widths)), nn.Linear(CHANNELS[-1], len(widths))
        self.exploring, self.said = False, None

    @contextmanager
    def explore(self) -> Iterator[None]:
        """Choose with noise, and leave in ``said`` what was chosen."""
        self.exploring = True
        try:
            yield
        finally:
            self.exploring = False

    def weigh(self, pixel_values: Tensor) -> Tensor:
        """Pictures [B, 3, h, w] -> w [B, m]."""
        looked = self.look(pixel_values.to(self.choose.weight.dtype)).mean((2, 3))
        logits: Tensor = self.choose(looked)
        if self.exploring:
            logits = logits + torch.randn_like(logits) * F.softplus(self.noise(looked))
        return logits.softmax(1)

    def route(self, weights: Tensor) -> Tensor:
        """w [B, m] -> r [B, m]."""
        best = weights.topk(self.top, 1).indices
        kept = torch.zeros_like(weights).scatter(1, best, weights.gather(1, best))
        return kept / kept.sum(1, keepdim=True)

    def forward(self, run: Any, pixel_values: Tensor) -> Pooled:
        """Pictures [B, 3, h, w] -> [B, sum of widths]."""
        weights = self.weigh(pixel_values)
        shares = self.route(weights)
        if torch.compiler.is_compiling():
            return Pooled(torch.cat([shares[:, i, None].to(f.dtype) * f for i, f in enumerate(self.see_all(pixel_values))], 1))
        seen = [self.see(i, pixel_values, shares[:, i]) for i in range(len(self.widths))]
        if self.exploring:
            self.said = Said(weights, seen)
        return Pooled(torch.cat([self.spread(rows, f, shares[:, i], len(weights)) for i, (rows, f) in enumerate(seen)], 1))

    def see_all(self, pixel_values: Tensor) -> list[Tensor]:
        """What every model makes of every picture."""
        trunk: Any = self.site.module
        return [trunk.see(i, pixel_values) for i in range(len(self.widths))]

    def see(self, i: int, pixel_values: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """The rows in which the i-th model has a share [B], and what it makes of them."""
        trunk: Any = self.site.module
        rows = share.nonzero().flatten()
        if not len(rows):
            return rows, pixel_values.new_zeros(0, self.widths[i])
        return rows, trunk.see(i, pixel_values if len(rows) == len(share) else pixel_values[rows])

    def spread(self, rows: Tensor, features: Tensor, share: Tensor, size: int) -> Tensor:
        """Features of some rows, times their share, among zeros [size, width]."""
        scaled = share[rows, None].to(features.dtype) * features
        return scaled.new_zeros(size, scaled.shape[1]).index_copy(0, rows, scaled)


@register("own-heads")
class OwnHeads(Edit):
    """h_i: a linear head for each model, which only training asks. They change nothing."""

    passive = True
    heads: nn.ModuleList

    def __init__(self, site: Site, widths: list[int], outputs: int):
        super().__init__(site)
        self.heads = nn.ModuleList(nn.Linear(width, outputs) for width in widths)

    def say(self, i: int, features: Tensor) -> Tensor:
        """h_i of f_i [n, width], [n, outputs]."""
        head: Any = self.heads[i]
        logits: Tensor = head(features.to(head.weight.dtype))
        return logits

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y as it is."""
        return y

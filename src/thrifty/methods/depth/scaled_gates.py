"""The gates of URNet: User-Resizable Residual Networks with Conditional Gating Module (Lee, Chang, Kwak; AAAI 2020,
arXiv:1901.04687): whether a residual block runs depends on the picture and on how large the network is asked to be."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core import Edit, Site, register
from .dropping import bypass, for_each, sparing

SCALE, USED = "the scale that is asked for", "the gates of this batch"


@register("network-scale")
class Scale(Edit):
    """At the model's beginning: tells the gates the ``scale`` S in [0, 1]; while they learn one drawn from U(0, 1) per batch."""

    port = "call"

    def __init__(self, site: Site, scale: float):
        super().__init__(site)
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(scale))
        self.drawing = False

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the model, as they are."""
        self.context.taps[SCALE] = (torch.rand_like(self.scale) if self.drawing else self.scale), self.drawing
        self.context.taps[USED] = {}
        return args, kwargs


@register("scaled-gate")
class Gate(Edit):
    """Around block ``number``: g block(x) + (1 - g) shortcut(x), with g [B] from the pooled input f [B, d] and the scale S.

        a = w' relu(W [f; S] + b) + c,   s = hardsigmoid(a) = min(1, max(0, a / 6 + 1/2)),   g = [s > 1/2], or 1 if S is 1

    While it learns g is s itself with probability ``soft``, drawn per block and batch, else the step with the gradient of s.
    W [hidden, d + 1]; w starts at zero and c at one, so that every block runs at first.
    """

    port = "around"

    def __init__(self, site: Site, number: int, hidden: int, soft: float):
        super().__init__(site)
        self.number, self.soft = number, soft
        self.hidden, self.last = nn.Linear(site.din + 1, hidden), nn.Linear(hidden, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.ones_(self.last.bias)

    def forward(self, run: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x [B, ...] -> [B, ...]."""
        told = self.context.taps.get(SCALE)
        if told is None:  # the model was entered past its beginning
            y: Tensor = run(x, *args, **kwargs)
            return y
        scale, drawing = told
        s, block = self.openness(x, scale), self.site.module
        runs = (s > 0.5) | (scale >= 1)
        g = runs.to(s.dtype)
        if drawing:
            g = s if float(torch.rand(())) < self.soft else g + s - s.detach()
        self.context.taps.setdefault(USED, {})[self.number] = g
        if sparing(self) and not drawing:
            return for_each(runs.long(), [lambda rows: bypass(block, rows), lambda rows: run(rows, *args, **kwargs)], x)
        y = run(x, *args, **kwargs)
        share = g.to(y.dtype).view(-1, *[1] * (y.dim() - 1))
        return share * y + (1 - share) * bypass(block, x)

    def openness(self, x: Tensor, scale: Tensor) -> Tensor:
        """s [B] for inputs [B, d, h, w] or [B, N, d]."""
        f = (x.mean((2, 3)) if x.dim() == 4 else x.mean(1)).to(self.last.weight.dtype)
        asked = scale.to(f).expand(len(f), 1)
        return F.hardsigmoid(self.last(F.relu(self.hidden(torch.cat([f, asked], 1)))))[:, 0]

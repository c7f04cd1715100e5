"""DoRA: Weight-Decomposed Low-Rank Adaptation (Liu, Wang, Yin, Molchanov, Wang, Cheng, Chen; ICML 2024, arXiv:2402.09353)."""
from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Edit, Site, apply_weight, register
from ..core.errors import Unfit
from .lora import LoRA, LowRank


@register("decomposed")
class Decomposed(LowRank):
    """W' = diag(m / n) V with V = W + s B A, n_i = |V_i| the norm of an output row, and m [dout] learned.

    m starts at |W_i|, so that g = m / n is one and the model unchanged. n is a constant in the backward pass if
    ``detach`` ("simple" in the authors' code). The bias is not scaled. While dropout is on, what (g - 1) multiplies is
    computed from the dropped input too:

        y <- y + g (drop(x) W + s B A drop(x)) - drop(x) W
    """

    additive = False

    def __init__(self, site: Site, rank: int, alpha: float, dropout: float = 0.0, stable: bool = False, detach: bool = True):
        super().__init__(site, rank, alpha, dropout, stable)
        if self.kind == "embedding":
            raise Unfit(f"DoRA at {site.path!r}: an embedding's rows are tokens, and the norms of DoRA are of output units")
        self.detach = detach
        self.m = nn.Parameter(_norm(site.weight.detach().to(site.dtype)))

    def forward(self, y: Tensor, x: Tensor | None = None) -> Tensor:
        """y [..., dout], x [..., din] -> [..., dout]; for a convolution images with channels in dimension 1."""
        assert x is not None  # it acts at outputs only
        dropped = self.dropout(x.to(self.m.dtype))
        weight = self.site.weight.detach().to(self.m.dtype)
        g = self._per_unit(self._gain(weight))
        if self.training and self.dropout.p > 0:
            base = apply_weight(self.site.module, weight, dropped)
        else:
            bias = self.site.bias
            base = y.to(self.m.dtype) if bias is None else y.to(self.m.dtype) - self._per_unit(bias.detach().to(self.m.dtype))
        return y + (g * (base + self.update(dropped)) - base).to(y.dtype)  # one product with g, as each keeps what it multiplies

    def delta(self, weight: Tensor) -> Tensor:
        """W' - W."""
        gain = self._gain(weight).view(-1, *(1 for _ in weight.shape[1:]))
        return gain * (weight + super().delta(weight).to(weight.dtype)) - weight

    @classmethod
    def combine(cls, edits: list[Any], weights: list[float]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Refused: norms do not add up, so that no weighted sum of decomposed edits is one."""
        return Edit.combine.__func__(cls, edits, weights)  # type: ignore[attr-defined]

    def _gain(self, weight: Tensor) -> Tensor:
        """g = m / n, one per output unit."""
        with torch.no_grad() if self.detach else contextlib.nullcontext():
            n = _norm(weight + super().delta(weight).to(weight.dtype))
        return self.m.to(weight.dtype) / n

    def _per_unit(self, t: Tensor) -> Tensor:
        """t [dout] so that it multiplies an output: the last dimension, or the channels of an image."""
        return t.view(-1, *(1 for _ in self.A.shape[2:]))


def _norm(weight: Tensor) -> Tensor:
    """The norm of each output row; a row of zeros keeps out of the division."""
    return weight.flatten(1).norm(dim=1).clamp_min(torch.finfo(weight.dtype).tiny)


@dataclass
class DoRA(LoRA):
    """Low-rank updates of the direction of each output unit's weights, and a learned magnitude beside them.

    The authors' defaults for LLaMA: every projection but those of the attention's output and of the gate, alpha = 2 rank,
    dropout 0.05. The magnitudes are not decayed. Training holds a weight-sized product more per layer than LoRA.
    """

    name = "dora"
    presets = {}
    paper = "Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, ICML 2024, arXiv:2402.09353"
    trains = "A [rank, in], B [out, rank] and a magnitude [out] beside each chosen weight"
    Edit = Decomposed
    rate = 2e-4

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    detach: bool = True
    where: str = "attn.q|attn.k|attn.v|mlp.in|mlp.out"

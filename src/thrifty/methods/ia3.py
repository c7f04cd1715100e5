"""(IA)³: Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning (Liu, Tam, Muqeeth, Mohta,
Huang, Bansal, Raffel; NeurIPS 2022, arXiv:2205.05638)."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Edit, Method, Site, register
from .branches.bottleneck import refuse_maps


class Factors(Edit):
    """y <- a * y at the output port, x <- a * x at the input port: one factor a per feature, ``width`` of them."""

    def __init__(self, site: Site, port: str):
        super().__init__(site)
        if port not in ("input", "output"):
            raise ValueError(f"a scale acts on 'input' or 'output', not {port!r}")
        self.port, self.width = port, site.dout if port == "output" else site.din
        module: Any = site.module
        conv = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        self.shape = (-1, *(1 for _ in module.kernel_size)) if conv else (-1,)

    def factors(self) -> Tensor:
        """a [width]."""
        raise NotImplementedError

    def forward(self, t: Tensor, x: Tensor | None = None) -> Tensor:
        """t [..., width], or [..., width, height, ...] at a convolution -> the same shape. ``x`` is not read.

        Raises:
            Unfit: the site is a block that does not give out tokens.
        """
        refuse_maps(self.site, t, self.width)
        a = self.factors()
        return (t.to(a.dtype) * a.view(self.shape)).to(t.dtype)

    def delta(self, weight: Tensor) -> Tensor:
        """(a - 1) times the rows (output) or the columns (input) of ``weight``.

        Raises:
            CannotMerge: the site has no weight.
        """
        if getattr(self.site.module, "weight", None) is None:
            return super().delta(weight)
        return weight * (self._along(weight) - 1)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """At the output the bias is scaled too."""
        folded = weight * self._along(weight)
        return folded, bias if bias is None or self.port == "input" else bias * self.factors().to(bias)

    def _along(self, weight: Tensor) -> Tensor:
        axis = 0 if self.port == "output" else 1
        return self.factors().to(weight).view(*(-1 if i == axis else 1 for i in range(weight.dim())))


@register("scale")
class Scale(Factors):
    """a = l, which starts at one and so changes nothing."""

    rowwise = True

    def __init__(self, site: Site, port: str):
        super().__init__(site, port)
        self.l = nn.Parameter(torch.ones(self.width))

    def factors(self) -> Tensor:
        """l [width]."""
        return self.l


@dataclass
class IA3(Method):
    """K <- l_k * K, V <- l_v * V, and FFN(x) = (l_ff * act(x W_1)) W_2: one factor per feature of keys, values, hidden units.

    Self- and cross-attention, encoder and decoder alike. In a gated network the product of both halves is scaled. The
    vectors are not decayed: decay would pull them to zero, and one is where they start.
    """

    name = "ia3"
    aliases = ("(ia)3",)
    route = "inject parameters"
    paper = "Liu et al., Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper, NeurIPS 2022, arXiv:2205.05638"
    trains = "one factor per key, value and hidden feature"
    mergeable = True
    inference = "none once merged"
    Edit = Scale
    rate = 3e-3

    where: str = "attn.k|attn.v|mlp.out"

    def numbers(self, site: Site) -> dict[str, Any]:
        """Keys and values are scaled where they come out, the hidden units where they enter the second layer."""
        return {"port": "input" if site.role == "mlp.out" else "output"}

"""A change of single entries of a weight, stored as their positions and values.

The unstructured part of SPT: Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning (He, Cai, Zhang, Tao, Zhuang; ICCV 2023,
arXiv:2303.08566).
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core import Edit, Site, register


@register("sparse-delta")
class SparseDelta(Edit):
    """y + S x, S [dout, din] zero but for ``count`` values, at ``positions`` counted along its rows. They start at zero.

    The gradient of the value at (i, j) is the sum over all tokens of dy_i x_j. It is read out of that of the dense S, which
    lives no longer than one layer's backward pass: products entry by entry would take count numbers per token.
    """

    additive = True
    positions: Tensor

    def __init__(self, site: Site, count: int):
        super().__init__(site)
        self.values = nn.Parameter(torch.zeros(count))
        self.register_buffer("positions", torch.arange(count, dtype=torch.int32))

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [..., dout], x [..., din] -> [..., dout]."""
        return y + F.linear(x.to(self.values.dtype), self.dense(self.site.dout, self.site.din)).to(y.dtype)

    def dense(self, rows: int, columns: int) -> Tensor:
        """S as a matrix [rows, columns]."""
        S = torch.zeros(rows * columns, dtype=self.values.dtype, device=self.values.device)
        return S.scatter(0, self.positions.long(), self.values).view(rows, columns)

    def delta(self, weight: Tensor) -> Tensor:
        """S, in the shape of ``weight``."""
        return self.dense(*weight.shape)

"""Stochastic depth: Deep Networks with Stochastic Depth (Huang, Sun, Liu, Sedra, Weinberger; ECCV 2016, arXiv:1603.09382)."""
from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """z / (1 - rate) for each row of a batch with probability 1 - rate, else zero; in training only."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, z: Tensor) -> Tensor:
        """z [batch, ...] -> the same shape."""
        if not self.training or self.rate == 0:
            return z
        kept = torch.rand(len(z), *(1 for _ in z.shape[1:]), device=z.device, dtype=z.dtype) >= self.rate
        return z * kept / (1 - self.rate)

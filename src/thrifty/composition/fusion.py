"""The attention of AdapterFusion: Non-Destructive Task Composition for Transfer Learning (Pfeiffer, Kamath, Rücklé, Cho,
Gurevych; EACL 2021, arXiv:2005.00247)."""
from __future__ import annotations

import torch
from torch import Tensor, nn


class Fusion(nn.Module):
    """a = softmax_n(dropout(<W_Q q + b_Q, W_K z_n + b_K>) / T),  o = sum_n a_n W_V z_n.

    The product is not divided by the root of the width, and dropped scores are zero, not masked. W_Q and W_K start at
    N(0, 0.02) with biases at zero, W_V at one on the diagonal and 1e-6 elsewhere.
    """

    def __init__(self, width: int, value: bool = True, dropout: float = 0.0, temperature: float = 1.0):
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        for layer in (self.query, self.key):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.value = nn.Linear(width, width, bias=False) if value else None
        if self.value is not None:
            with torch.no_grad():
                self.value.weight.fill_(1e-6).fill_diagonal_(1.0)
        self.dropout = nn.Dropout(dropout)
        self.temperature: Tensor
        self.register_buffer("temperature", torch.tensor(float(temperature)))
        self.attention: Tensor | None = None  # of the last pass, if somebody asked with ``keep``
        self.keep = False

    def forward(self, q: Tensor, z: Tensor) -> Tensor:
        """q [..., d] and the parts' additions z [..., N, d] -> [..., d]."""
        dtype = self.query.weight.dtype
        scores = (self.key(z.to(dtype)) @ self.query(q.to(dtype)).unsqueeze(-1)).squeeze(-1)
        a = (self.dropout(scores) / self.temperature).softmax(-1)
        if self.keep:
            self.attention = a.detach()
        mixed = (a.unsqueeze(-1) * z.to(dtype)).sum(-2)  # before W_V, which is linear: one product in the place of N
        return mixed if self.value is None else self.value(mixed)

    def penalty(self) -> Tensor | float:
        """|| I - W_V ||_F^2."""
        if self.value is None:
            return 0.0
        weight = self.value.weight
        return ((torch.eye(len(weight), dtype=weight.dtype, device=weight.device) - weight) ** 2).sum()

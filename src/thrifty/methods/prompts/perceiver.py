"""A perceiver that sums up many tokens in few: Perceiver: General Perception with Iterative Attention (Jaegle, Gimeno, Brock,
Zisserman, Vinyals, Carreira; ICML 2021, arXiv:2103.03206), in the form that Flamingo gave it (Alayrac et al., NeurIPS 2022)."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Reader(nn.Module):
    """z + Attn(LN_z(z), [LN_x(x); LN_z(z)]), then z + W_2 gelu(W_1 LN(z)): latents z [batch, N, w] read tokens x [batch, L, w].

    There are ``heads`` heads of width ``dim``; no layer has a bias, the network is ``ratio`` w wide.
    """

    def __init__(self, width: int, heads: int, dim: int, ratio: int):
        super().__init__()
        self.heads, inner = heads, heads * dim
        self.norm_x, self.norm_z, self.norm = (nn.LayerNorm(width) for _ in range(3))
        self.q, self.kv = nn.Linear(width, inner, bias=False), nn.Linear(width, 2 * inner, bias=False)
        self.o = nn.Linear(inner, width, bias=False)
        self.wide, self.back = nn.Linear(width, ratio * width, bias=False), nn.Linear(ratio * width, width, bias=False)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The latents after reading."""
        own = self.norm_z(z)
        both = torch.cat([self.norm_x(x), own], 1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.q(own), *self.kv(both).chunk(2, -1)))
        z = z + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        read: Tensor = z + self.back(F.gelu(self.wide(self.norm(z))))
        return read


class Resampler(nn.Module):
    """Learned latents [tokens, width] ~ N(0, 1 / width) that read a picture's tokens in ``depth`` layers; LN at the end."""

    def __init__(self, features: int, width: int, tokens: int, depth: int = 4, heads: int = 12, dim: int = 64, ratio: int = 4):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(tokens, width) / width**0.5)
        self.first, self.last, self.norm = nn.Linear(features, width), nn.Linear(width, width), nn.LayerNorm(width)
        self.layers = nn.ModuleList(Reader(width, heads, dim, ratio) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, L, features] -> [batch, tokens, width]."""
        x = self.first(x)
        z = self.latents.expand(len(x), -1, -1)
        for layer in self.layers:
            z = layer(z, x)
        made: Tensor = self.norm(self.last(z))
        return made

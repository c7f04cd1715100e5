"""Part: the columns of a fused projection that belong to q, k, v, gate or in."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

KNOWN = ("timm.", "open_clip.", "torchvision.")  # packages whose fused projections are all laid out [q | k | v]


@dataclass(frozen=True)
class Part:
    """Columns ``lo`` to ``hi`` of each of ``groups`` equal runs of an output's last axis.

    GPT-2 and timm lay out [q | k | v]: one group. GPT-NeoX lays out [head][q | k | v]: one group per head.
    """

    name: str
    lo: int
    hi: int
    groups: int = 1

    @property
    def width(self) -> int:
        """How many columns this is."""
        return (self.hi - self.lo) * self.groups

    def take(self, t: Tensor, dim: int = -1) -> Tensor:
        """The part's entries of ``t`` along ``dim``, in order."""
        split = t.unflatten(dim, (self.groups, -1))
        return split.narrow(dim + 1 if dim >= 0 else dim, self.lo, self.hi - self.lo).flatten(*_pair(dim))

    def put(self, t: Tensor, new: Tensor, dim: int = -1) -> Tensor:
        """A copy of ``t`` in which the part's entries along ``dim`` are ``new``."""
        axis = dim + 1 if dim >= 0 else dim
        split, new = t.unflatten(dim, (self.groups, -1)), new.unflatten(dim, (self.groups, -1))
        left, right = split.narrow(axis, 0, self.lo), split.narrow(axis, self.hi, split.shape[axis] - self.hi)
        return torch.cat([left, new, right], axis).flatten(*_pair(dim))


def _pair(dim: int) -> tuple[int, int]:
    return (dim, dim + 1) if dim >= 0 else (dim - 1, dim)


def parts(role: str, module: nn.Module, owner: Any, width: int) -> list[Part] | None:
    """How the ``width`` output columns of a fused projection divide; None where that is not known.

    ``owner`` is the module that calls the projection and splits what it returns.
    """
    if role == "mlp.gate_in":
        return [Part("mlp.gate", 0, width // 2), Part("mlp.in", width // 2, width)]
    kind = type(owner).__name__
    if kind in ("GPTNeoXAttention", "BloomAttention") or (kind == "DisentangledSelfAttention" and width % 3 == 0):
        heads = next((getattr(owner, a) for a in ("num_attention_heads", "num_heads") if hasattr(owner, a)), None)
        heads = heads or getattr(getattr(owner, "config", None), "num_attention_heads", None)
        return None if not heads else [Part(f"attn.{n}", i * (width // heads // 3), (i + 1) * (width // heads // 3), heads)
                                       for i, n in enumerate("qkv")]
    if kind == "Phi3Attention":
        q = owner.config.num_attention_heads * owner.head_dim
        kv = owner.config.num_key_value_heads * owner.head_dim
        edges = [0, q, q + kv, q + 2 * kv]
    elif width % 3 == 0 and (hasattr(module, "nf") or type(owner).__module__.startswith(KNOWN)):
        edges = [0, width // 3, 2 * width // 3, width]
    else:
        return None
    return [Part(f"attn.{n}", lo, hi) for n, lo, hi in zip("qkv", edges, edges[1:], strict=False)]

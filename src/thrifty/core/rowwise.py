"""Rows with tensors of their own: what an edit does, mapped over the rows of a batch."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def map_rows(edit: nn.Module, act: str, own: dict[str, Tensor], *given: Tensor) -> Any:
    """``edit``'s method ``act`` of every row of ``given`` [B, ...], with a row of ``own`` [B, ...] in the place of its tensors."""
    acting = _Acting(edit, act)

    def row(own: dict[str, Tensor], *given: Tensor) -> Any:
        out = functional_call(acting, own, tuple(t[None] for t in given))
        return tuple(t[0] for t in out) if isinstance(out, tuple) else out[0]

    return torch.vmap(row, randomness="different")({f"edit.{name}": t for name, t in own.items()}, *given)


class _Acting(nn.Module):
    """One method of a module as a module, for that is what takes other tensors."""

    def __init__(self, edit: nn.Module, act: str):
        super().__init__()
        self.edit, self.act = edit, act

    def forward(self, *given: Tensor) -> Any:
        return getattr(self.edit, self.act)(*given)

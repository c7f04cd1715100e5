"""Rows: states of a batch as one piece per example, without padding, and padded anew for another batch."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thrifty.core.errors import Unfit


def take_apart(states: Tensor, mask: Tensor | None, what: object) -> list[Tensor]:
    """States [B, ...] as B pieces [1, ...]; with ``mask`` [B, T], states [B, T, ...] as pieces [tokens of the row, ...].

    Raises:
        Unfit: states, of ``what`` is named, do not have a place for every token.
    """
    states = states.detach().cpu()
    if mask is None:
        return list(states.split(1))
    if states.shape[:2] != mask.shape:
        raise Unfit(f"{what} is {tuple(states.shape)} for texts of {tuple(mask.shape)} tokens, so padding cannot be told from text")
    return [row[kept] for row, kept in zip(states, mask.cpu().bool(), strict=True)]


def put_together(flat: Tensor, lengths: Sequence[int], mask: Tensor | None, what: object) -> Tensor:
    """The pieces of a batch, one after the other [sum of lengths, ...], as states [B, ...] or, padded with zeros, [B, T, ...].

    Raises:
        Unfit: the pieces are of other texts than ``mask`` is.
    """
    if mask is None:
        return flat
    if mask.dim() != 2 or mask.sum(1).tolist() != list(lengths):
        raise Unfit(f"{what} was stored for texts of {list(lengths)[:8]} tokens, which those of the batch do not have: the store "
                    "is of other rows")
    padded = torch.zeros(*mask.shape, *flat.shape[1:], dtype=flat.dtype, device=flat.device)
    padded[mask.to(flat.device).bool()] = flat
    return padded

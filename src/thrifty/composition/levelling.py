"""Rows of one attention call with different numbers of keys put in front, as one batch."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Piece = tuple[Tensor, ...]


def level(pieces: list[Piece], length: int) -> list[Piece]:
    """Pieces (q, k, v, and perhaps which keys in front a row sees) as long as the longest, each with what its rows see.

    k and v [rows, heads, keys, dim] end with the ``length`` keys of the call itself; those of shorter ones get zeros in front,
    which nobody sees: ``seen`` [rows, keys - length] is false there.
    """
    longest = max(piece[1].shape[2] for piece in pieces)
    found: list[Piece] = []
    for q, k, v, *seen in pieces:
        own = k.shape[2] - length
        told = seen[0] if seen else torch.ones(len(k), own, dtype=torch.bool, device=k.device)
        lacking = longest - k.shape[2]
        found.append((q, F.pad(k, (0, 0, lacking, 0)), F.pad(v, (0, 0, lacking, 0)), F.pad(told, (lacking, 0))))
    return found

"""Checksums of tensor contents: exact integers, the same on every device, about as fast as reading the memory."""
from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor

from .drawing import is_drawing

WHOLE = 1 << 22  # 32-bit words up to which a tensor is read whole; 16 MiB
PIECE = 1 << 14  # larger ones: this many words at each of SAMPLES places
SAMPLES = 64
_CHUNK = 1 << 20


def digest(tensor: Tensor, whole: bool = False) -> str:
    """A short checksum of the numbers in ``tensor``, its dtype and shape.

    Integer sums of its 32-bit words, plain and weighted by place, so that a changed, swapped or moved entry shows. A tensor
    of more than ``WHOLE`` words is sampled at ``SAMPLES`` places unless ``whole``.
    """
    tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    if is_drawing(tensor):
        return f"meta:{tuple(tensor.shape)}"
    words = _words(tensor.detach())
    if words.numel() > WHOLE and not whole:
        step = (words.numel() - PIECE) // (SAMPLES - 1)
        words = torch.cat([words[i * step : i * step + PIECE] for i in range(SAMPLES)])
    places = _places(str(words.device))
    sums = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    for start in range(0, words.numel(), _CHUNK):
        piece = words[start : start + _CHUNK]
        placed = (piece * places[: piece.numel()]).sum(dtype=torch.int64)
        sums.update(f"{int(piece.sum(dtype=torch.int64))}/{int(placed)};".encode())
    return sums.hexdigest()[:16]


def _words(tensor: Tensor) -> Tensor:
    """The tensor's bytes as 32-bit integers, the last one filled up with zeros."""
    octets = tensor.contiguous().reshape(-1).view(torch.uint8)
    rest = -octets.numel() % 4
    return (torch.cat([octets, octets.new_zeros(rest)]) if rest else octets).view(torch.int32)


@lru_cache(maxsize=4)
def _places(device: str) -> Tensor:
    """Odd 32-bit multipliers, one a place; products wrap around alike on every device."""
    return (torch.arange(_CHUNK, device=device) * 2654435761 | 1).to(torch.int32)


def digests(named: Iterable[tuple[str, Tensor]], whole: bool = False) -> dict[str, str]:
    """Name -> checksum."""
    return {name: digest(tensor, whole) for name, tensor in named}

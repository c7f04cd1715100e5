"""Checksums of tensor contents: exact integers, the same on every device, about as fast as reading the memory."""
from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

WHOLE = 1 << 24  # entries up to which a tensor is read whole
PIECE = 1 << 16  # larger ones: this many entries at each of SAMPLES places
SAMPLES = 64
_WORD = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest(tensor: Tensor, whole: bool = False) -> str:
    """A short checksum of the numbers in ``tensor``, its dtype and shape.

    Two integer sums, plain and weighted by place, so that a changed, swapped or moved entry shows. A tensor of more than
    ``WHOLE`` entries is sampled at ``SAMPLES`` places unless ``whole``.
    """
    tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    if tensor.device.type == "meta":
        return f"meta:{tuple(tensor.shape)}"
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    words = flat.to(torch.uint8) if flat.dtype == torch.bool else flat.view(_WORD[flat.element_size()])
    if words.numel() > WHOLE and not whole:
        step = (words.numel() - PIECE) // (SAMPLES - 1)
        words = torch.cat([words[i * step : i * step + PIECE] for i in range(SAMPLES)])
    plain, placed = 0, 0
    for start in range(0, words.numel(), 1 << 22):
        piece = words[start : start + (1 << 22)].long()
        place = torch.arange(start + 1, start + 1 + piece.numel(), device=piece.device) * 2654435761 % 2147483647
        plain += int(piece.sum())
        placed += int((piece * place).sum())
    about = f"{tensor.dtype}{tuple(tensor.shape)}{plain & 0xFFFFFFFFFFFFFFFF:x}/{placed & 0xFFFFFFFFFFFFFFFF:x}"
    return hashlib.sha256(about.encode()).hexdigest()[:16]


def digests(named: Iterable[tuple[str, Tensor]], whole: bool = False) -> dict[str, str]:
    """Name -> checksum."""
    return {name: digest(tensor, whole) for name, tensor in named}

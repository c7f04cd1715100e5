"""Packing: states in fewer bytes, and what that loses."""
from __future__ import annotations

import torch
from torch import Tensor

from thrifty.core.errors import Unfit

PRECISIONS = ("exact", "float16", "int8")
BYTES = {"float16": 2, "int8": 1}  # of a number; "exact" keeps those that it has
LOSES = {"exact": 0.0, "float16": 2e-3, "int8": 0.2}  # no more than this, in root mean square and relative, is packing's doing


def pack(states: Tensor, precision: str) -> tuple[Tensor, Tensor | None]:
    """States [n, ..., d] in ``precision``, and the scales [n, ...] of their last axis if it is "int8".

    Raises:
        Unfit: a number is too large for float16, or not finite.
    """
    if precision == "exact":
        return states, None
    if precision == "float16":
        packed = states.to(torch.float16)
        if not packed.isfinite().all():
            raise Unfit(f"states reach {float(states.abs().max()):.3g}, which float16 cannot hold: store them exactly or in int8")
        return packed, None
    if not states.isfinite().all():
        raise Unfit("states that are not finite cannot be stored in int8")
    scales = states.float().abs().amax(-1) / 127
    steps = states.float() / scales.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)
    return steps.round().to(torch.int8), scales


def unpack(packed: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The opposite, as numbers of ``dtype``."""
    return packed.to(dtype) if scales is None else (packed.float() * scales.unsqueeze(-1)).to(dtype)


def gap(one: Tensor, other: Tensor) -> float:
    """The root mean square of the difference, relative to that of ``other``."""
    whole = float(other.double().square().sum())
    apart = float((one.double() - other.double()).square().sum())
    return float((apart / whole if whole else apart) ** 0.5)

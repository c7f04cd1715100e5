"""Drawings: tensors with a shape and no numbers, of which models are made that are only looked at."""
from __future__ import annotations

from torch import Tensor


def is_drawing(tensor: Tensor) -> bool:
    """Whether nothing can be read from ``tensor``: it is on the meta device, or a fake tensor of torch on any other."""
    return tensor.device.type == "meta" or hasattr(tensor, "fake_mode")

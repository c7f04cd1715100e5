"""Drawings: tensors with a shape and no numbers, of which models are made that are only looked at."""
from __future__ import annotations

from torch import Tensor, nn


def is_drawing(tensor: Tensor) -> bool:
    """Whether nothing can be read from ``tensor``: it is on the meta device, or a fake one."""
    return tensor.device.type == "meta" or is_fake(tensor)


def is_fake(tensor: Tensor) -> bool:
    """Whether it is one of torch's fake tensors, whose type hides that of the tensor they stand for."""
    return hasattr(tensor, "fake_mode")


def truncated_normal_(tensor: Tensor, std: float, bound: float) -> Tensor:
    """Normal numbers between -``bound`` and ``bound``, in place. Torch draws until all lie there; in a drawing there are none."""
    return tensor if is_drawing(tensor) else nn.init.trunc_normal_(tensor, std=std, a=-bound, b=bound)

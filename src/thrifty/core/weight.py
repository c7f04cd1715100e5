"""The one reader and writer of base weights: dense, transposed (HF Conv1D), quantised, sharded or offloaded."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .drawing import is_fake
from .errors import Unfit


def is_quantised(module: nn.Module) -> bool:
    """Whether the module multiplies by a weight that it does not hold as plain floating-point numbers."""
    weight = getattr(module, "weight", None)
    if weight is None:
        return False
    if callable(weight):  # torch.ao dynamic quantisation: weight() unpacks
        return True
    plain = type(weight) in (Tensor, nn.Parameter) or is_fake(weight) or hasattr(weight, "full_tensor")
    return not plain and hasattr(weight, "dequantize") or not weight.is_floating_point()


def read(module: nn.Module, where: str) -> Tensor:
    """The weight of ``module`` as [out, in, ...], dense; a view of the parameter where that is possible.

    Raises:
        Unfit: the module has no weight, or it is offloaded to another device and not here now.
    """
    weight = getattr(module, "weight", None)
    if weight is None:
        raise Unfit(f"{where!r} ({type(module).__name__}) has no weight")
    if is_quantised(module):
        return _dequantise(module, where)
    if weight.device.type == "meta" and hasattr(module, "_hf_hook"):
        raise Unfit(f"the weight of {where!r} is offloaded (a meta tensor) and this method reads it: load without offloading")
    if hasattr(weight, "full_tensor"):
        weight = weight.full_tensor()
    if isinstance(module, nn.Embedding):
        return weight.T
    return weight.T if hasattr(module, "nf") else weight


def writable(module: nn.Module) -> bool:
    """Whether ``read`` gives a view through which the weight can be changed."""
    return not is_quantised(module) and not hasattr(getattr(module, "weight", None), "full_tensor")


def count(parameter: Tensor) -> int:
    """How many numbers a parameter stands for; a packed one has several in a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else state.shape.numel())


def _dequantise(module: Any, where: str) -> Tensor:
    weight = module.weight
    packed = weight() if callable(weight) else weight
    if (state := getattr(packed, "quant_state", None)) is not None:  # bitsandbytes, 4 bits
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(packed.data, state)
    if hasattr(packed, "dequantize") and not hasattr(packed, "quant_state"):
        return packed.dequantize()
    width = getattr(module, "in_features", None)
    if width is None:
        raise Unfit(f"do not know how to read the quantised weight of {where!r} ({type(module).__name__})")
    # Any quantised linear tells its weight when asked for its answer to the unit vectors.
    with torch.no_grad():
        bias = getattr(module, "bias", None)
        device = packed.device
        answer = type(module).forward(module, torch.eye(width, device=device))
        return (answer - bias if isinstance(bias, Tensor) else answer).T.contiguous()

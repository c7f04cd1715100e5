"""Keeping only those activations for the backward pass that it needs, where frozen weights make the others useless.

The point of TinyTL: Reduce Memory, Not Parameters for Efficient On-Device Learning (Cai, Gan, Zhu, Han; NeurIPS 2020,
arXiv:2007.11622). torch keeps the input of every convolution, batch normalisation and maximum, whether their weights train or
not, and the output of every ReLU at full precision.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function
from torch.nn.grad import conv2d_input
from torch.overrides import TorchFunctionMode

from ...core import Edit, register
from ...core.errors import CannotMerge

_conv2d, _batch_norm, _relu, _relu6, _hardtanh = F.conv2d, F.batch_norm, F.relu, F.relu6, F.hardtanh
_max_pool2d: Any = F.max_pool2d


class Convolution(Function):
    """A 2-d convolution whose weight is frozen: dL/dx needs that weight, dL/db nothing, and the input is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        """As F.conv2d."""
        ctx.save_for_backward(weight)
        ctx.shape, ctx.geometry = x.shape, geometry
        return _conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """dL/dx and dL/db."""
        (weight,) = ctx.saved_tensors
        dx = db = None
        if ctx.needs_input_grad[0]:
            dx = conv2d_input(ctx.shape, weight.to(dy.dtype), dy, *ctx.geometry)
        if ctx.needs_input_grad[2]:
            db = dy.sum((0, 2, 3))
        return dx, None, db, *(None for _ in ctx.geometry)


class Normalisation(Function):
    """A batch normalisation with frozen statistics and scale, y = g (x - m) / sqrt(v + eps) + b: an affine map, that keeps no x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        """As F.batch_norm in evaluation."""
        ctx.save_for_backward(var, weight)
        ctx.eps = eps
        return _batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """dL/dx and dL/db."""
        var, weight = ctx.saved_tensors
        scale = (var + ctx.eps).rsqrt() if weight is None else (var + ctx.eps).rsqrt() * weight
        dx = (dy * scale.view(1, -1, *(1 for _ in dy.shape[2:]))).to(dy.dtype) if ctx.needs_input_grad[0] else None
        db = dy.sum((0, *range(2, dy.dim()))) if ctx.needs_input_grad[4] else None
        return dx, None, None, None, db, None


class Clamp(Function):
    """min(max(x, low), high), which keeps one bit per number: whether x lies between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        """As F.hardtanh; with an infinite ``high`` as F.relu."""
        ctx.save_for_backward(pack((x > low) & (x < high)))
        ctx.shape = x.shape
        return _relu(x) if math.isinf(high) else _hardtanh(x, low, high)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """dL/dx."""
        (bits,) = ctx.saved_tensors
        return dy * unpack(bits, ctx.shape), None, None


class MaxPool(Function):
    """A 2-d maximum over windows, which keeps where each maximum was, in 4 bytes, and not what it was the maximum of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *geometry: Any) -> Tensor:
        """As F.max_pool2d."""
        y, places = F.max_pool2d_with_indices(x, *geometry)
        ctx.save_for_backward(places.to(torch.int32))
        ctx.shape = x.shape
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """dL/dx."""
        (places,) = ctx.saved_tensors
        none = torch.zeros(ctx.shape, dtype=dy.dtype, device=dy.device).flatten(-2)
        return none.scatter_add(-1, places.flatten(-2).long(), dy.flatten(-2)).view(ctx.shape), *(None for _ in range(5))


def pack(mask: Tensor) -> Tensor:
    """Truths as bits [numel / 8, rounded up] of bytes, the first in the lowest."""
    bits = F.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """What ``pack`` was given, as zeros and ones of ``shape``."""
    bits = packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1
    return bits.flatten()[: shape.numel()].view(shape)


def _apply(kind: Any, *args: Any) -> Tensor:
    made: Tensor = kind.apply(*args)
    return made


def _trains(*tensors: Tensor | None) -> bool:
    return any(t is not None and t.requires_grad for t in tensors)


def conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
           groups: int = 1) -> Tensor:
    """F.conv2d."""
    if _trains(weight) or not _trains(input, bias) or isinstance(padding, str) or input.dim() != 4:
        return _conv2d(input, weight, bias, stride, padding, dilation, groups)
    return _apply(Convolution, input, weight, bias, stride, padding, dilation, groups)


def batch_norm(input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
               bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5) -> Tensor:
    """F.batch_norm."""
    if training or running_mean is None or running_var is None or _trains(weight) or not _trains(input, bias):
        return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _apply(Normalisation, input, running_mean, running_var, weight, bias, eps)


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """F.relu."""
    return _apply(Clamp, input, 0.0, math.inf) if _trains(input) else _relu(input, inplace)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """F.relu6."""
    return _apply(Clamp, input, 0.0, 6.0) if _trains(input) else _relu6(input, inplace)


def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor:
    """F.hardtanh, which is also what nn.ReLU6 calls."""
    return _apply(Clamp, input, float(min_val), float(max_val)) if _trains(input) else _hardtanh(input, min_val, max_val, inplace)


def max_pool2d(input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False,
               return_indices: bool = False) -> Any:
    """F.max_pool2d."""
    if return_indices or not _trains(input):
        return _max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    return _apply(MaxPool, input, kernel_size, stride if stride is not None else kernel_size, padding, dilation, ceil_mode)


class Frugally(TorchFunctionMode):
    """While active, the functions above stand in for torch's: the same numbers and gradients, with less kept in between."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        stand_in: Callable[..., Tensor] = func
        if func is _conv2d:
            stand_in = conv2d
        elif func is _batch_norm:
            stand_in = batch_norm
        elif func is _relu:
            stand_in = relu
        elif func is _relu6:
            stand_in = relu6
        elif func is _hardtanh:
            stand_in = hardtanh
        elif func is _max_pool2d:
            stand_in = max_pool2d
        return stand_in(*args, **(kwargs or {}))


@register("sparing")
class Sparing(Edit):
    """Runs the model as it is, but keeps for the backward pass what that needs: nothing without a graph, else ``Frugally``."""

    port = "around"
    passive = True

    def forward(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the model answers."""
        if not torch.is_grad_enabled():
            return run(*args, **kwargs)
        with Frugally():
            return run(*args, **kwargs)

    def delta(self, weight: Tensor) -> Tensor:
        """There is none.

        Raises:
            CannotMerge: always, saying how to go on.
        """
        raise CannotMerge(f"{self.site.path or 'the model'!r} still saves memory for training: call method.finish(at) after it")

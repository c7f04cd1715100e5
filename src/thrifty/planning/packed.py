"""Packed: stands for a linear layer in four bits, where nothing has numbers that could be packed."""
from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thrifty.models.quantising import turn

BLOCK, BLOCKS = 64, 256  # numbers that share a scale of one byte, and scales that share one of four


class Unpacked(torch.autograd.Function):
    """x Wᵀ, where W is made anew for each pass and kept by none, as by bitsandbytes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, int]) -> Tensor:
        """x [..., in] -> [..., out]."""
        ctx.shape = shape
        return F.linear(x, x.new_empty(shape).fill_(0))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The gradient of x."""
        return grads[0] @ grads[0].new_empty(ctx.shape).fill_(0), None


class Packed(nn.Linear):
    """``linear`` with a weight of as many bytes as its codes have, and its scales beside it; the bias is shared."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        count, device = linear.weight.numel(), linear.weight.device
        codes = torch.empty(math.ceil(count / 2), 1, dtype=torch.uint8, device=device)
        self.weight = nn.Parameter(codes, requires_grad=False)
        scales = math.ceil(count / BLOCK) + 4 * math.ceil(count / (BLOCK * BLOCKS))
        self.register_buffer("scales", torch.empty(scales, dtype=torch.uint8, device=device), persistent=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], in the precision of x, or of autocast."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y: Tensor = Unpacked.apply(x, (self.out_features, self.in_features))  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)


def pack(model: nn.Module, keep: Iterable[str]) -> None:
    """Give ``model``, a drawing, packed layers in the places of those that the run would hold in four bits.

    Raises:
        Unfit: there is none.
    """
    turn(model, keep, lambda linear: Packed(linear).train(linear.training))

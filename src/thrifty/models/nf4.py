"""A frozen linear layer whose weight lies in four bits, by bitsandbytes. Imported only where that is installed."""
from __future__ import annotations

import bitsandbytes
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import Tensor, nn


class NF4Linear(Linear4bit):
    """y = x W'ᵀ + b with W' the numbers that the four bits stand for, made anew for each product and kept by none.

    Codes are of the 4-bit NormalFloat in blocks of 64; the largest magnitude of each block is held in 8 bits in its turn. Unlike
    bitsandbytes' own class, it leaves its bias in the precision that it has, and its codes in the order that they are saved in.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], in the precision of x, or of autocast."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return bitsandbytes.matmul_4bit(x, self.weight, bias=bias, quant_state=self.weight.quant_state)


def pack(linear: nn.Linear) -> NF4Linear:
    """The same layer with its weight in four bits; the bias is shared with it."""
    device, training = linear.weight.device, linear.training
    with torch.device("meta"):
        made = NF4Linear(linear.in_features, linear.out_features, bias=False, compress_statistics=True, quant_type="nf4")
    made.weight = Params4bit(linear.weight.detach(), requires_grad=False, compress_statistics=True, quant_type="nf4", module=made)
    made.bias = linear.bias
    return made.to(device).train(training)


def unpack(packed: Linear4bit) -> nn.Linear:
    """The dense layer that it stands for."""
    from thrifty.core.weight import read

    with torch.device("meta"):
        made = nn.Linear(packed.in_features, packed.out_features, bias=False)
    made.weight = nn.Parameter(read(packed, "").contiguous(), requires_grad=False)
    made.bias = packed.bias
    return made.train(packed.training)

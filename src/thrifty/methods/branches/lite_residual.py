"""The lite residual module of TinyTL: Reduce Memory, Not Parameters for Efficient On-Device Learning (Cai, Gan, Zhu, Han; NeurIPS
2020, arXiv:2007.11622), with the weight standardisation of Qiao, Wang, Liu, Shen, Yuille (2019, arXiv:1903.10520)."""
from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...core import Edit, Site, register
from ...core.errors import Unfit
from ...core.probe import guess_example, run_once
from .bottleneck import tapped

if TYPE_CHECKING:
    from ...core import Attachment

BESIDE = re.compile(r"shortcut|downsample")  # paths of what stands beside a block's main branch
CHANNELS = 8  # per group of a group normalisation, and what widths are multiples of


class StandardisedConv(nn.Conv2d):
    """A convolution by (W - mean) / (std + eps), filter by filter; with ``eps`` 0 by W itself."""

    def __init__(self, enters: int, leaves: int, kernel: int, eps: float, stride: int = 1, groups: int = 1):
        super().__init__(enters, leaves, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.eps = eps
        nn.init.kaiming_normal_(self.weight, mode="fan_out")

    def forward(self, input: Tensor) -> Tensor:
        """[batch, C_in, H, W] -> [batch, C_out, H', W']."""
        return self._conv_forward(input, standardise(self.weight, self.eps) if self.eps else self.weight, None)


def standardise(weight: Tensor, eps: float) -> Tensor:
    """Every filter of ``weight`` [out, in, k, k] with mean 0 and deviation 1, but for ``eps``."""
    flat = weight.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    return (flat / (flat.std(1, keepdim=True) + eps)).view(weight.shape)


def group_norm(width: int) -> nn.GroupNorm:
    """Of 8 channels per group, or of as many below as divide the width."""
    return nn.GroupNorm(width // math.gcd(width, CHANNELS), width)


def divisible(width: float, by: int = CHANNELS) -> int:
    """The multiple of ``by`` nearest to ``width``, and not below nine tenths of it."""
    found = max(by, int(width + by / 2) // by * by)
    return found + by if found < 0.9 * width else found


@register("lite-residual")
class LiteResidual(Edit):
    """F(a) + up(GN_2(C_1x1(relu(GN_1(C_kxk(pool(a))))))) where the main branch F of a block ends, before its skip is added.

    a [batch, width, H, W] is what the block reads, pool an average over ``pool`` x ``pool`` places, C_kxk in ``groups`` groups
    to divisible(``expand`` width) channels and with the block's ``stride``, up bilinear. With ``pool`` 0 the average is over
    all places, and nothing is brought up again. The scale of GN_2 starts at zero, so that the block starts as it was; it has
    no shift, as that of the main branch trains.
    """

    def __init__(self, site: Site, key: str, width: int, stride: int, kernel: int, groups: int, expand: float, pool: int,
                 standardised: bool):
        super().__init__(site)
        middle, eps = divisible(expand * width), 1e-5 if standardised else 0.0
        if width % groups or middle % groups:
            raise Unfit(f"{groups} groups do not divide the {width} channels that the block of {site.path!r} reads, or the "
                        f"{middle} in the middle of its lite residual: set conv_groups=1")
        self.key, self.pool = key, pool
        self.conv = StandardisedConv(width, middle, kernel, eps, stride if pool else 1, groups)
        self.norm, self.act = group_norm(middle), nn.ReLU()
        self.point, self.last = StandardisedConv(middle, site.dout, 1, eps), group_norm(site.dout)
        nn.init.zeros_(self.last.weight)
        self.last.register_parameter("bias", None)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [batch, C_out, H', W'] -> the same shape."""
        a = tapped(self, self.key, x).to(self.conv.weight.dtype)
        a = F.avg_pool2d(a, self.pool) if self.pool else a.mean((2, 3), keepdim=True)
        z = self.last(self.point(self.act(self.norm(self.conv(a)))))
        if self.pool:
            z = F.interpolate(z, y.shape[-2:], mode="bilinear", align_corners=False)
        return y + z.to(y.dtype)


@dataclass(frozen=True)
class MainBranch:
    """Where a block reads, and where its main branch ends; channels and height that it reads, and by what it divides that."""

    block: Site
    end: Site
    width: int
    height: int
    stride: int


def main_branches(at: Attachment) -> list[MainBranch]:
    """The blocks of a convolutional network, each of which adds a skip to what its last normalisation gives.

    Raises:
        Unfit: the model has no such blocks, or how large pictures are in them cannot be seen.
    """
    every, kind = at.sites("*"), type(at.model).__name__
    blocks = [site for site in every if site.role == "block"]
    ends: dict[str, Site] = {}
    for block in blocks:
        inside = [site for site in every if site.path.startswith(block.path + ".")]
        norms = [site for site in inside if site.role == "norm" and not BESIDE.search(site.path[len(block.path) :])]
        if {site.role for site in inside} - {"norm", "conv"} or not norms:
            raise Unfit(f"{block.path!r} ({type(block.module).__name__}) is no block of convolutions that ends in a normalisation, "
                        "as in ResNet and MobileNetV2, so there is no place for a lite residual: set mode='bias'")
        ends[block.path] = norms[-1]
    example = at.seen.example if at.seen.example is not None else guess_example(at.model)
    if not blocks or example is None:
        raise Unfit(f"{kind} has no blocks of convolutions for lite residuals: set mode='bias'" if not blocks else
                    f"how large pictures are in the blocks of {kind} is only known by running it: pass example= (a batch)")
    read, gave = _look(at.model, [b.module for b in blocks], [e.module for e in ends.values()], example)
    found = []
    for block in blocks:
        x, y = read[block.module], gave[ends[block.path].module]
        found.append(MainBranch(block, ends[block.path], x[1], x[2], -(-x[2] // y[2])))
    return found


def _look(model: nn.Module, blocks: list[nn.Module], ends: list[nn.Module], example: Any) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Shapes of what the blocks read, and of what the ends give, in one run."""
    read: dict[nn.Module, tuple[int, ...]] = {}
    gave: dict[nn.Module, tuple[int, ...]] = {}

    def enter(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        read[module] = tuple(args[0].shape)

    def leave(module: nn.Module, args: Any, out: Tensor) -> None:
        gave[module] = tuple(out.shape)

    hooks: list[Callable[[], Any]] = [m.register_forward_pre_hook(enter).remove for m in blocks]
    hooks += [m.register_forward_hook(leave).remove for m in ends]
    try:
        run_once(model, example)
    finally:
        for remove in hooks:
            remove()
    return read, gave

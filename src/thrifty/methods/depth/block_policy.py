"""The policy of BlockDrop (Wu, Nagarajan, Kumar, Rennie, Davis, Grauman, Feris; CVPR 2018, arXiv:1711.08393): a small network
that looks at a picture and says which blocks of a large one it needs."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core import Edit, Site, register
from ..features import pictures
from .dropping import PATH

NETWORKS: dict[str, tuple[int, ...]] = {"resnet8": (16, 32, 64), "resnet10": (64, 128, 256, 512)}


class Basic(nn.Module):
    """relu(shortcut(x) + BN(conv3(relu(BN(conv3(x)))))); the shortcut is a strided 1 × 1 convolution where the shape changes."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.short = nn.Sequential() if before == width and stride == 1 else \
            nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, before, h, w] -> [B, width, h / stride, w / stride]."""
        return F.relu(self.short(x) + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


def build(network: str, channels: int) -> nn.Sequential:
    """Pictures [B, channels, H, W] -> [B, width]. "resnet8" (as for CIFAR) reads them as they are, "resnet10" (as for ImageNet)
    at half the size, through the strided beginning of the larger ResNets. One basic block per width either way."""
    widths = NETWORKS[network]
    if network == "resnet8":
        begin: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    else:
        begin = [nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(channels, widths[0], 7, 2, 3, bias=False), nn.BatchNorm2d(widths[0]),
                 nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks = [Basic(before, width, 1 if i == 0 else 2) for i, (before, width) in enumerate(zip((widths[0], *widths), widths,
                                                                                              strict=False))]
    return nn.Sequential(*begin, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@register("block-policy")
class Policy(Edit):
    """s = sigmoid(W phi(x) + b) [B, blocks] at the model's beginning; block k runs if s_k > 1/2, or if it is not ``free``.

    Only the last ``free`` blocks may be left out. W starts at zero and b at one, so that at first every block runs.
    """

    port = "call"

    def __init__(self, site: Site, blocks: int, network: str, channels: int, free: int):
        super().__init__(site)
        self.blocks = blocks
        self.network = build(network, channels)
        self.logit = nn.Linear(NETWORKS[network][-1], blocks)
        nn.init.zeros_(self.logit.weight)
        nn.init.ones_(self.logit.bias)
        self.free: Tensor
        self.register_buffer("free", torch.tensor(free))
        self.alpha: float | None = None  # while paths are drawn
        self.path: Tensor | None = None  # while one is given
        self.said: tuple[Tensor, Tensor] | None = None

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the model, as they are; which blocks run is left for them."""
        if self.path is not None:
            self.context.taps[PATH] = self.path
            return args, kwargs
        s = self.scores(pictures.find(args, kwargs)[1])
        path = self.greedy(s) if self.alpha is None else self.keep(torch.bernoulli(bounded(s.detach(), self.alpha)) > 0)
        if self.alpha is not None:
            self.said = s, path
        self.context.taps[PATH] = path
        return args, kwargs

    def scores(self, x: Tensor) -> Tensor:
        """s [B, blocks] of pictures [B, C, H, W]."""
        return self.logit(self.network(x.to(self.logit.weight.dtype))).sigmoid()

    def greedy(self, s: Tensor) -> Tensor:
        """The path [B, blocks] that is taken when nothing is drawn."""
        return self.keep(s > 0.5)

    def keep(self, path: Tensor) -> Tensor:
        """The path, through all blocks that are not free."""
        return path | ~self.unlocked()

    def unlocked(self) -> Tensor:
        """Which blocks are free, [blocks]."""
        return torch.arange(self.blocks, device=self.free.device) >= self.blocks - self.free

    @contextmanager
    def drawing(self, alpha: float) -> Iterator[None]:
        """While it lasts, paths are drawn from the ``bounded`` s, and s and path are left in ``said``."""
        self.alpha = alpha
        try:
            yield
        finally:
            self.alpha = None

    @contextmanager
    def following(self, path: Tensor) -> Iterator[None]:
        """While it lasts, every batch takes that path [B, blocks], or [1, blocks] for all, and the policy is not asked."""
        self.path = path
        try:
            yield
        finally:
            self.path = None


def bounded(s: Tensor, alpha: float) -> Tensor:
    """s' = alpha s + (1 - alpha) (1 - s), which stays between 1 - alpha and alpha, so that nothing is ever certain."""
    return alpha * s + (1 - alpha) * (1 - s)


def reward(path: Tensor, right: Tensor, gamma: float) -> Tensor:
    """R(u) [B] of paths [B, blocks]: 1 - (|u| / blocks)² where the answer is ``right`` [B], else gamma."""
    used = path.float().mean(1)
    return torch.where(right, 1 - used.square(), gamma)


def log_likelihood(path: Tensor, s: Tensor) -> Tensor:
    """log Bernoulli(u_k; s_k) [B, blocks]."""
    return torch.where(path, s.log(), (1 - s).log())

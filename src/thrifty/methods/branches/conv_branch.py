"""The convolutional branch of Conv-Adapter (Chen et al. 2022, arXiv:2208.07463), and the places where it can stand."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...core import Branch, Edit, Site, register
from ...core.drawing import truncated_normal_
from ...core.errors import Unfit
from ..features.tower import as_map, as_tokens
from .bottleneck import ACTS, tapped
from .stream import Aside, laid_out


class Convolutions(nn.Module):
    """A(x) = alpha * (W_pw act(W_dw x + b_dw) + b_pw), x [batch, width, h, w] -> [batch, out, h / stride, w / stride].

    W_dw is [hidden, width / hidden, kernel, kernel] in ``hidden`` groups, so that each hidden channel sees some neighbouring
    channels; W_pw is [out, hidden, 1, 1]; alpha [out] starts at one. ``init``: both start "kaiming"-normal by what they give out
    (ResNet), "truncated"-normal with deviation 0.02 (ConvNeXt), with biases of zero, or by torch's "default" (Swin). ``zero``:
    "alpha", or all that is "pointwise", starts at zero, or "none".
    """

    def __init__(self, width: int, out: int, hidden: int, kernel: int, stride: Any, padding: Any, dilation: Any, act: str,
                 init: str, zero: str):
        super().__init__()
        stride, padding, dilation = (tuple(n) if isinstance(n, list) else n for n in (stride, padding, dilation))
        self.depthwise = nn.Conv2d(width, hidden, kernel, stride, padding, dilation, groups=hidden)
        self.pointwise = nn.Conv2d(hidden, out, 1)
        self.act, self.alpha = ACTS[act], nn.Parameter(torch.zeros(out) if zero == "alpha" else torch.ones(out))
        for conv in (self.depthwise, self.pointwise):
            assert conv.bias is not None
            if init == "kaiming":
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            elif init == "truncated":
                truncated_normal_(conv.weight, 0.02, 2.0)
            if init != "default":
                nn.init.zeros_(conv.bias)
        if zero == "pointwise":
            for p in self.pointwise.parameters():
                nn.init.zeros_(p)

    def forward(self, x: Tensor) -> Tensor:
        """A(x), in the precision of the parameters."""
        z: Tensor = self.alpha[:, None, None] * self.pointwise(self.act(self.depthwise(x.to(self.alpha.dtype))))
        return z


@register("conv-branch")
class ConvBranch(Branch):
    """y + A(x), or y + A(y) if it ``follows``; maps [batch, channels, h, w], or with ``tokens`` those that Swin's tokens make."""

    def __init__(self, site: Site, follows: bool, sizes: dict[str, Any], tokens: bool = False):
        super().__init__(site)
        self.follows, self.tokens, self.net = follows, tokens, Convolutions(**sizes)

    def read(self, y: Tensor, x: Tensor) -> Tensor:
        """The map that the branch reads.

        Raises:
            Unfit: tokens that are no square.
        """
        t = y if self.follows else x
        return as_map(self.site, t) if self.tokens else t

    def branch(self, h: Tensor) -> Tensor:
        """A(h)."""
        z: Tensor = self.net(h)
        return as_tokens(z) if self.tokens else z

    def write(self, y: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """y + z.

        Raises:
            Unfit: the block makes a map of another size than the branch does.
        """
        if not self.tokens and z.shape != y.shape:
            raise Unfit(f"{self.site.path!r} gives out {list(y.shape)} and a branch of its stride {list(z.shape)}: leave this "
                        "place out of where=, or choose another design")
        return y + laid_out(self.site, z, y).to(y.dtype)


@register("conv-aside")
class ConvAside(Aside):
    """Leaves A of what it sees under ``key``; with ``since``, of what that gained since a ``Tap`` left it under that key."""

    def __init__(self, site: Site, key: str, port: str, sizes: dict[str, Any], tokens: bool = False, since: str = ""):
        super().__init__(site, key, port)
        self.since, self.tokens, self.net = since, tokens, Convolutions(**sizes)

    def branch(self, t: Tensor) -> Tensor:
        """A(t) [batch, channels, h, w], or [batch, tokens, channels].

        Raises:
            Unfit: tokens that are no square.
            DeadEdit: the tap left nothing.
        """
        if self.since:
            t = t - laid_out(self.site, tapped(self, self.since, t), t)
        z: Tensor = self.net(as_map(self.site, t) if self.tokens else t)
        return as_tokens(z) if self.tokens else z


@register("final-norm")
class FinalNorm(Edit):
    """BN(y): a batch norm with statistics of its own, of what the last block gives out, y [batch, channels, h, w]."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.norm = nn.BatchNorm2d(site.dout)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [batch, channels, h, w] -> the same shape."""
        z: Tensor = self.norm(y.to(self.norm.weight.dtype))
        return z.to(y.dtype)

"""What lies between blocks of different models, and in front of the first.

Deep Model Reassembly (Yang, Zhou, Liu, Ye, Wang; NeurIPS 2022, arXiv:2210.17409).
"""
from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import BrokenArtifact
from ..core.hooks import main

SLOPE = 0.1  # of the LeakyReLU behind each stitch


@dataclass(frozen=True)
class Joint:
    """How ``din`` channels become ``dout``.

    "map": batch norm, convolution (kernel and stride ``stride``, no bias), LeakyReLU; "flat" the same, and places become tokens;
    "tokens": layer norm, linear layer without bias, LeakyReLU; "none": as they are, between blocks that followed each other in
    one model; "spread": as they are, but for places that become tokens, behind the stem.
    """

    kind: str
    din: int
    dout: int
    stride: int = 1

    @property
    def parameters(self) -> int:
        """How many there are: 2 din + din dout stride²."""
        return 0 if self.kind in ("none", "spread") else 2 * self.din + self.din * self.dout * self.stride**2

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


class Stitch(nn.Module):
    """A ``Joint`` as a module."""

    def __init__(self, joint: Joint) -> None:
        super().__init__()
        if joint.kind not in ("map", "flat", "tokens", "none", "spread"):
            raise BrokenArtifact(f"there is no stitch of the kind {joint.kind!r}")
        self.kind = joint.kind
        self.norm: nn.Module | None = None
        self.project: nn.Module | None = None
        if joint.kind == "tokens":
            self.norm, self.project = nn.LayerNorm(joint.din), nn.Linear(joint.din, joint.dout, bias=False)
        elif joint.kind in ("map", "flat"):
            self.norm = nn.BatchNorm2d(joint.din)
            self.project = nn.Conv2d(joint.din, joint.dout, joint.stride, joint.stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, din, h, w] or tokens [B, n, din] -> maps [B, dout, h / stride, w / stride] or tokens [B, n, dout]."""
        if self.norm is not None and self.project is not None:
            x = F.leaky_relu(self.project(self.norm(x.to(self.project.weight.dtype))), SLOPE)  # type: ignore[arg-type]
        return x.flatten(2).transpose(1, 2) if self.kind in ("flat", "spread") else x


class Stem(nn.Module):
    """Convolution 7 x 7 of stride 2 without bias, batch norm, ReLU, maxima 3 x 3 of stride 2: 147 C + 2 C parameters."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, channels, 7, 2, 3, bias=False), nn.BatchNorm2d(channels)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Pictures [B, 3, h, w] -> maps [B, C, h / 4, w / 4]."""
        x = self.norm(self.convolution(pixel_values.to(self.convolution.weight.dtype))).relu()
        return F.max_pool2d(x, 3, 2, 1)


def run_nodes(nodes: list[nn.Module], x: Tensor) -> Tensor:
    """One block after the other, in the precision of their weights."""
    first = next((p for node in nodes for p in node.parameters()), x)
    x = x.to(first.dtype)
    for node in nodes:
        x = main(node(x))
    return x


def pool(x: Tensor) -> Tensor:
    """The mean over places of maps or tokens, [B, C]."""
    return x.mean(1 if x.dim() == 3 else (2, 3))


class Net(nn.Module):
    """Stem, and stitches each followed by blocks that belong to other models too: what an assembly is, without its head."""

    def __init__(self, stem: Stem, stitches: list[Stitch], blocks: list[list[nn.Module]]) -> None:
        super().__init__()
        self.stem, self.stitches = stem, nn.ModuleList(stitches)
        self.blocks = blocks
        self.held = nn.ModuleList(node for nodes in blocks for node in nodes)  # so that what looks at modules finds them

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Pictures [B, 3, h, w] -> [B, width of the last block]."""
        x = self.stem(pixel_values)
        for stitch, nodes in zip(self.stitches, self.blocks, strict=True):
            x = run_nodes(nodes, stitch(x))
        return pool(x)

"""Pictures as the pupil sees them in training: each step another cut, a pure function of the step's random numbers."""
from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.vit_mini.recipe import SIDE

MARGIN = 4                  # pixels by which a colour picture is moved
ZOOM = (0.7, 1.3)           # of grey pictures
SHIFT = 0.15                # of grey pictures, in halves of a side
INVERTED = 0.25             # share of grey pictures that are dark on bright


def color_views(pictures: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """uint8 [n, 32, 32, 3] as pixels in [-1, 1] [n, 3, 32, 32], moved and every other one mirrored; and which are mirrored [n]."""
    x = F.pad(scaled(pictures.permute(0, 3, 1, 2)), (MARGIN,) * 4, mode="reflect")
    across, down = (torch.randint(0, 2 * MARGIN + 1, (len(x),), generator=source) for _ in range(2))
    mirrored = torch.rand(len(x), generator=source) < 0.5
    cut = torch.stack([one[:, j : j + SIDE, i : i + SIDE] for one, i, j in
                       zip(x, across.tolist(), down.tolist(), strict=True)])
    return torch.where(mirrored.view(-1, 1, 1, 1), cut.flip(3), cut), mirrored


def grey_views(pictures: Tensor, source: torch.Generator, mirror: bool) -> Tensor:
    """uint8 [n, 28, 28] as pixels in [-1, 1] [n, 3, 32, 32], zoomed and moved, some inverted, every other one mirrored if told."""
    n = len(pictures)
    drawn = torch.rand(n, 5, generator=source)
    zoom = torch.exp(math.log(ZOOM[0]) + drawn[:, 0] * math.log(ZOOM[1] / ZOOM[0]))
    side = torch.where(drawn[:, 1] < 0.5, -1.0, 1.0) if mirror else torch.ones(n)
    shift = (2 * drawn[:, 2:4] - 1) * SHIFT
    zero = torch.zeros(n)
    where = torch.stack([torch.stack([zoom * side, zero, shift[:, 0]], 1), torch.stack([zero, zoom, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(where, [n, 1, SIDE, SIDE], align_corners=False)
    x = F.grid_sample(pictures[:, None].float() / 255, grid, align_corners=False)
    x = torch.where((drawn[:, 4] < INVERTED).view(-1, 1, 1, 1), 1 - x, x)
    return (2 * x - 1).expand(-1, 3, -1, -1)


def plain_views(pictures: Tensor) -> Tensor:
    """uint8 pictures of any set as pixels in [-1, 1] [n, 3, 32, 32], as the processor of the finished model gives them."""
    if pictures.dim() == 4:
        return scaled(pictures.permute(0, 3, 1, 2))
    larger = F.interpolate(pictures[:, None].float(), size=(SIDE, SIDE), mode="bicubic", align_corners=False)
    return scaled(larger.clamp(0, 255)).expand(-1, 3, -1, -1)


def scaled(x: Tensor) -> Tensor:
    """0 … 255 as -1 … 1."""
    return x.float() / 127.5 - 1

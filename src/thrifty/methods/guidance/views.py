"""Views: the same rows seen a second time, for methods that compare what a network says to both."""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.errors import Unfit
from ..features.pictures import are_pictures

KINDS = ("auto", "crop", "same")
AREA, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)  # of a crop: its share of the picture, and width over height


def second_view(task: Any, model: Any, batch: Any, kind: str) -> dict[str, Tensor]:
    """The model's input in a second view of a batch: the one that the batch holds (``Task.view``), else one made here.

    "crop" is ``crop`` of the pictures in the batch; "same" is the same input again, which another dropout sees otherwise; "auto"
    crops where there are pictures.

    Raises:
        Unfit: "crop" without pictures.
    """
    if (held := task.view(batch)) is not None:
        return dict(held)
    inputs: dict[str, Tensor] = task.inputs(model, batch)
    pictures = [key for key, value in inputs.items() if are_pictures(value)]
    if kind == "crop" and not pictures:
        raise Unfit(f"view='crop' is for pictures, and the batch holds {', '.join(inputs)}: set view='same'")
    return inputs if kind == "same" else inputs | {key: crop(inputs[key]) for key in pictures}


def crop(pixels: Tensor) -> Tensor:
    """A random part of each picture [B, C, h, w], of 20 to 100 % of its area, at the same size; every second one mirrored."""
    draw = torch.rand(5, len(pixels)).to(pixels.device)
    area = AREA[0] + (AREA[1] - AREA[0]) * draw[0]
    ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** draw[1]
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    x, y = (1 - width) * (2 * draw[2] - 1), (1 - height) * (2 * draw[3] - 1)
    mirrored = torch.where(draw[4] < 0.5, -width, width)
    nothing = torch.zeros_like(x)
    theta = torch.stack([torch.stack([mirrored, nothing, x], 1), torch.stack([nothing, height, y], 1)], 1)
    grid = F.affine_grid(theta.to(pixels.dtype), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)

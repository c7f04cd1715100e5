"""Sight: how a model wants to see pictures, and what one model was shown as another would have seen it."""
from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from thrifty.models.backbone import Backbone

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Sight:
    """Pictures of ``size`` (height, width) whose channels, from 0 to 1, are (x - mean) / std; each number one per channel."""

    mean: Numbers
    std: Numbers
    size: tuple[int, int]


def sight(backbone: Backbone) -> Sight | None:
    """How the backbone's own preparation leaves a picture, by what ``source`` says of it; None where it says nothing."""
    said = backbone.source.get("image") or {}
    if "input_size" in said:  # timm
        return Sight(tuple(said["mean"]), tuple(said["std"]), (said["input_size"][1], said["input_size"][2]))
    if "image_mean" not in said or "size" not in said:
        return None
    mean, std = (said["image_mean"], said["image_std"]) if said.get("do_normalize", True) else ([0.0] * 3, [1.0] * 3)
    scale = round(255 * said.get("rescale_factor", 1 / 255), 6) if said.get("do_rescale", True) else 255
    size = said["crop_size"] if said.get("do_center_crop") else said["size"]
    edge = size.get("shortest_edge")  # processors that do not crop by a size of their own end in a square all the same
    return Sight(tuple(m / scale for m in mean), tuple(s / scale for s in std), (size.get("height", edge), size.get("width", edge)))


def show(pixels: Tensor, seen: Sight, wanted: Sight) -> Tensor:
    """Pictures [B, 3, h, w] prepared for one model's sight -> the same ones for another's, cut as they are, and resized."""
    if seen == wanted:
        return pixels
    plain = pixels * _spread(seen.std, pixels) + _spread(seen.mean, pixels)
    if tuple(plain.shape[-2:]) != wanted.size:
        plain = F.interpolate(plain, wanted.size, mode="bicubic", antialias=True).clamp(0, 1)
    return (plain - _spread(wanted.mean, pixels)) / _spread(wanted.std, pixels)


def _spread(numbers: Numbers, like: Tensor) -> Tensor:
    return like.new_tensor(numbers).view(-1, 1, 1)

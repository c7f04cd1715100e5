"""How deep and wide the towers of a student are, and how many numbers that makes."""
from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from thrifty.core.errors import NoSuchSetting, nearest

TOWERS = {"image": "vision", "text": "text"}  # by the names that transformers gives them


@dataclass(frozen=True)
class Tower:
    """``layers`` blocks on states of ``width`` numbers; heads stay as wide as the teacher's."""

    layers: int
    width: int


@dataclass(frozen=True)
class Shape:
    """Of both towers."""

    image: Tower
    text: Tower

    def __str__(self) -> str:
        return "/".join(f"{tower.layers}x{tower.width}" for tower in (self.image, self.text))


SHAPES = {
    "61m-29m": Shape(Tower(12, 640), Tower(9, 512)), "40m-19m": Shape(Tower(12, 512), Tower(6, 512)),
    "8m-3m": Shape(Tower(10, 256), Tower(3, 256)),
}
"""The published ones, by the millions of numbers in either tower. 61M and 40M are with patches of 32 pixels; 40M is called 39M with
patches of 16."""


def parse(said: str) -> Shape:
    """A shape by its name, or as ``12x512/6x512``: layers and width of the image tower, and of the text tower.

    Raises:
        NoSuchSetting: it is neither.
    """
    if said in SHAPES:
        return SHAPES[said]
    numbers = re.fullmatch(r"(\d+)x(\d+)/(\d+)x(\d+)", said.strip())
    if numbers is None:
        raise NoSuchSetting(f"{said!r} is no shape, such as 12x512/6x512 (layers and width of the image tower, then of the text "
                            "tower)." + nearest(said, SHAPES))
    layers, width, text_layers, text_width = map(int, numbers.groups())
    return Shape(Tower(layers, width), Tower(text_layers, text_width))


def count(model: Any) -> dict[str, int]:
    """Numbers in the image tower and in the text tower, each with its projection; the table of tokens apart, as the published names
    leave it out; and ``all`` of them."""
    tokens = model.text_model.embeddings.token_embedding.weight.numel()
    sizes = {name: sum(p.numel() for part in parts for p in part.parameters()) for name, parts in {
        "image": (model.vision_model, model.visual_projection), "text": (model.text_model, model.text_projection)}.items()}
    return {"image": sizes["image"], "text": sizes["text"] - tokens, "tokens": tokens,
            "all": sum(p.numel() for p in model.parameters())}

"""Learned tokens in both towers of an image-text model, at the first block and over those at deeper ones:
MaPLe (Khattak, Rasheed, Maaz, Khan, Khan; CVPR 2023, arXiv:2210.03117) and its independent form IVLP."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...core import Edit, Site, register
from ...core.errors import NoSuchSetting, Unfit
from ...core.site import at_path
from .context import SPREAD, blocks, place

if TYPE_CHECKING:
    from ...core import Attachment


@register("text-tokens")
class TextTokens(Edit):
    """Before a block of the text tower, P [n, width] over the states of the prompt's places; no positions are added to it."""

    port = "input"
    constant = True

    def __init__(self, site: Site, length: int, begin: int, width: int):
        super().__init__(site)
        self.length, self.begin = length, begin
        self.make(width)

    def make(self, width: int) -> None:
        """The edit's own tensors."""
        self.P = nn.Parameter(SPREAD * torch.randn(self.length, width))

    def tokens(self) -> Tensor:
        """P [n, width]."""
        return self.P

    def forward(self, x: Tensor) -> Tensor:
        """x [sentences, T, width] -> the same shape; the prompt begins behind the ``begin`` tokens of a sentence."""
        P = self.tokens().to(x.dtype).expand(len(x), -1, -1)
        return torch.cat([x[:, : self.begin], P, x[:, self.begin + self.length :]], 1)


@register("image-tokens")
class ImageTokens(Edit):
    """Q [n, width] behind the picture's tokens, with no positions: the ``first`` such edit appends it, later ones write theirs over
    the last n."""

    port = "input"

    def __init__(self, site: Site, length: int, first: bool, width: int):
        super().__init__(site)
        self.length, self.first = length, first
        self.make(width)

    def make(self, width: int) -> None:
        """The edit's own tensors."""
        self.Q = nn.Parameter(SPREAD * torch.randn(self.length, width))

    def tokens(self) -> Tensor:
        """Q [n, width]."""
        return self.Q

    def forward(self, x: Tensor) -> Tensor:
        """x [B, tokens, width] -> n tokens more if this is the first."""
        Q = self.tokens().to(x.dtype).expand(len(x), -1, -1)
        return torch.cat([x if self.first else x[:, : -self.length], Q], 1)


def text_places(at: Attachment, depth: int) -> list[Site]:
    """The text tower's blocks that prompts of ``depth`` are written over at: all but the first of so many.

    Raises:
        NoSuchSetting: there are not so many blocks.
    """
    place(at, "text")
    model: Any = at.model
    return deep_enough(at, blocks(at, model.towers.text_blocks), depth)[1:]


def image_places(at: Attachment, depth: int) -> list[Site]:
    """Where the picture's tokens come in, and the blocks that prompts of ``depth`` are written over at.

    Raises:
        NoSuchSetting: there are not so many blocks. Unfit: the image tower reads no tokens.
    """
    place(at, "image")
    model: Any = at.model
    if not model.towers.image_entry:
        raise Unfit(f"tokens stand beside those of a picture, and {type(model.towers.trunk.vision_model).__name__} reads none: "
                    "choose a method for the text tower, such as coop, or a model whose image tower is a transformer")
    entry = at_path(model, model.path(model.towers.image_entry), "norm", None, -1, "", at.seen)
    return [entry, *deep_enough(at, blocks(at, model.towers.image_blocks), depth)[1:]]


def deep_enough(at: Attachment, stack: list[Site], depth: int) -> list[Site]:
    """The first ``depth`` blocks.

    Raises:
        NoSuchSetting: there are fewer.
    """
    if depth > len(stack):
        what = at.method.name if at.method else "prompts"
        raise NoSuchSetting(f"{what}: depth must be at most {len(stack)}, the number of blocks of {stack[0].stack!r}, not {depth}")
    return stack[:depth]


def put_text(at: Attachment, depth: int, length: int) -> None:
    """Tokens before each deeper block of the text tower."""
    text: Any = place(at, "text").module
    for site in text_places(at, depth):
        at.put(site, TextTokens, length=length, begin=len(text.texts.reader.begin), width=text.towers.text_width)


def put_image(at: Attachment, depth: int, length: int) -> None:
    """Tokens where the picture's come in, and before each deeper block."""
    model: Any = at.model
    for level, site in enumerate(image_places(at, depth)):
        at.put(site, ImageTokens, length=length, first=level == 0, width=model.towers.image_width)

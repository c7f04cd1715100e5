"""Pixel prompts: Exploring Visual Prompts for Adapting Large-Scale Models (Bahng, Jahanian, Sankaranarayanan, Isola; 2022,
arXiv:2203.17274)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Edit, Method, Site, need, register
from ..core.errors import Unfit
from .features import pictures

if TYPE_CHECKING:
    from ..core import Attachment


@register("pixel-prompt")
class Pixels(Edit):
    """x + v, with pictures x [B, C, H, W] after their normalisation, and v [C, H, W] the same for all of a batch.

        padding  v is a frame of width p: up, down [1, C, p, W] and left, right [1, C, H - 2p, p]
        fixed    v is a patch [1, C, p, p] in the upper left corner
        random   a patch at a place that is drawn anew for every batch, also once trained: rows from 0 to H - p - 1, columns alike

    and zero elsewhere. Every entry starts from N(0, 1).
    """

    port = "call"

    def __init__(self, site: Site, kind: str, width: int, shape: list[int]):
        super().__init__(site)
        c, h, w = self.shape = tuple(shape)
        self.kind, self.width = kind, width
        if kind == "padding":
            self.up, self.down = (nn.Parameter(torch.randn(1, c, width, w)) for _ in range(2))
            self.left, self.right = (nn.Parameter(torch.randn(1, c, h - 2 * width, width)) for _ in range(2))
        else:
            self.patch = nn.Parameter(torch.randn(1, c, width, width))

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the model, with other pictures.

        Raises:
            Unfit: the pictures are of another size than those that the prompt was made for.
        """
        place, x = pictures.find(args, kwargs)
        if tuple(x.shape[1:]) != self.shape:
            raise Unfit(f"the prompt is for pictures of {list(self.shape)}, these are {list(x.shape[1:])}: prepare them alike, or "
                        "attach a prompt with example= (a batch of that size)")
        return pictures.exchange(args, kwargs, place, x + self.prompt().to(x.dtype))

    def prompt(self) -> Tensor:
        """v [1, C, H, W]."""
        (c, h, w), p = self.shape, self.width
        if self.kind == "padding":
            middle = self.left.new_zeros(1, c, h - 2 * p, w - 2 * p)
            return torch.cat([self.up, torch.cat([self.left, middle, self.right], 3), self.down], 2)
        top, left = (int(torch.randint(size - p, ())) for size in (h, w)) if self.kind == "random" else (0, 0)
        return F.pad(self.patch, (left, w - p - left, top, h - p - top))


@register("first-classes")
class FirstClasses(Edit):
    """The first ``classes`` logits [B, classes] of a model with a head of its own: target class c reads that of source class c."""

    def __init__(self, site: Site, classes: int):
        super().__init__(site)
        self.classes = classes

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [B, any] -> [B, classes].

        Raises:
            Unfit: the model has fewer classes.
        """
        if y.shape[-1] < self.classes:
            kind = type(self.site.module).__name__
            raise Unfit(f"{kind} answers with {y.shape[-1]} classes, which cannot stand for {self.classes}")
        return y[..., : self.classes]


@dataclass
class PixelPrompt(Method):
    """Learned pixels on every picture, and nothing else: x' = x + v; see ``Pixels``.

    v is added after the normalisation and is not clipped, so that in raw pixels its size is v times the deviation. ``classes``
    makes the first so many classes of a fixed head stand for the target's; 0 leaves the head as it is, with a new one, say,
    that trains too. It trains at the size of the pictures that it is attached with: 224 in the paper, with ``width`` 30. The
    authors take SGD with a rate of 40 and no decay for 1,000 epochs; ``rate`` is one for AdamW. The prompt is not decayed.
    """

    name = "pixel-prompt"
    aliases = ("visual-prompting",)
    presets = {"fixed-patch-prompt": {"kind": "fixed"}, "random-patch-prompt": {"kind": "random"}}
    route = "input and output"
    modalities = ("image",)
    paper = "Bahng et al., Exploring Visual Prompts for Adapting Large-Scale Models, 2022, arXiv:2203.17274"
    trains = "a frame of pixels, or a patch, on every picture"
    inference = "one addition per picture"
    identity_at_start = False
    rate = 1e-2

    kind: str = "padding"
    width: int = 30
    classes: int = 0

    def check(self) -> None:
        """The kind is known, sizes are sizes."""
        need(self.kind in ("padding", "fixed", "random"), self, "kind", "'padding', 'fixed' or 'random'")
        need(self.width >= 1, self, "width", "at least 1")
        need(self.classes >= 0, self, "classes", "at least 0")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The prompt where the model is entered.

        Raises:
            Unfit: the model reads no pictures.
            NoSuchSetting: the prompt is wider than they are.
        """
        shape = list(pictures.example(at).shape[1:])
        least = min(shape[1:])
        most = {"padding": least // 2, "fixed": least, "random": least - 1}[self.kind]
        need(self.width <= most, self, "width", f"at most {most} on pictures of {shape[1]} × {shape[2]}")
        root = at.sites("model")[0]
        at.put(root, Pixels, kind=self.kind, width=self.width, shape=shape)
        if self.classes:
            at.put(root, FirstClasses, classes=self.classes)

    def groups(self, at: Attachment, rate: float, decay: float) -> list[dict[str, Any]]:
        """The prompt without decay, a new head as ever."""
        pixels = {id(p) for edit in at.edits.values() for p in edit.parameters()}
        found = [{**group, "params": [p for p in group["params"] if id(p) not in pixels]}
                 for group in super().groups(at, rate, decay)]
        own = {"params": [p for p in at.parameters() if id(p) in pixels], "lr": rate, "weight_decay": 0.0}
        return [group for group in (own, *found) if group["params"]]

"""CoCoOp: Conditional Prompt Learning for Vision-Language Models (Zhou, Yang, Loy, Liu; CVPR 2022, arXiv:2203.05557)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Edit, Site, need, register
from .coop import CoOp
from .prompts.context import Context, place

if TYPE_CHECKING:
    from ..core import Attachment

SEEN = "the picture's unit feature"


@register("see-image")
class SeeImage(Edit):
    """Changes nothing: leaves the picture's unit feature for the sentences."""

    passive = True

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [B, d] as it is."""
        self.context.taps[SEEN] = y / y.norm(dim=-1, keepdim=True)
        return y


@register("conditional-context")
class ConditionalContext(Context):
    """v + W_2 relu(W_1 f + b_1) + b_2 for a picture with unit feature f [d]; W_1 [h, d], W_2 [width, h], h = d / ``reduction``."""

    constant = False

    def __init__(self, site: Site, length: int, position: str = "end", words: str = "", taken: int = 0, drawn: bool = True,
                 reduction: int = 16):
        self.__dict__["reduction"] = reduction  # which making the tensors needs
        super().__init__(site, length, position, words, taken, drawn=drawn)

    def make(self, each: list[int], width: int) -> None:
        """The vectors, and the meta-network with the usual start of linear layers."""
        super().make(each, width)
        tower: Any = self.site.module
        d = tower.towers.width
        h = max(1, d // self.reduction)
        self.inner, self.outer = nn.Linear(d, h), nn.Linear(h, width)

    def vectors(self) -> Tensor:
        """[B, 1, M, width], all M of a picture moved alike."""
        f = self.context.taps[SEEN].to(self.inner.weight.dtype)
        return (self.ctx + self.outer(F.relu(self.inner(f)))[:, None])[:, None]


@dataclass
class CoCoOp(CoOp):
    """CoOp whose vectors move with the picture, by what a small network makes of its feature.

        v_m(x) = v_m + meta(f),  meta(f) = W_2 relu(W_1 f + b_1) + b_2         f of unit length
        logits_k = s cos(f, g(v_1(x) .. v_M(x) name_k .))

    So each picture has K sentences of its own: a batch of B runs B K of them, in training and after it. The authors train with
    batch 1, 10 epochs, SGD at 2e-3.
    """

    name = "cocoop"
    presets = {}
    paper = "Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022, arXiv:2203.05557"
    trains = "vectors around class names, and a network that moves them with the picture"
    inference = "the text tower for every class and picture"

    words: str = "a photo of a"
    reduction: int = 16

    def check(self) -> None:
        """All classes share the vectors."""
        super().check()
        need(self.reduction >= 1, self, "reduction", "at least 1")
        need(not self.per_class, self, "per_class", "false: vectors move with the picture, alike for all classes")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """A look at the picture, and sentences that depend on it.

        Raises:
            Unfit: the model does not know classes by their names.
        """
        at.put(place(at, "image"), SeeImage)
        self.put_context(at, ConditionalContext, reduction=self.reduction)

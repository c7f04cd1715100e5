"""VPT for convolutional networks: a learned border around the picture, the "pad" variant of

Visual Prompt Tuning (Jia, Tang, Chen, Cardie, Belongie, Hariharan, Lim; ECCV 2022, arXiv:2203.12119)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import Edit, Method, Site, need, register
from ..core.errors import HalfAdapted, NoSuchSite, Unfit
from ..core.hooks import edits_on
from .prompts.still import keep_still

if TYPE_CHECKING:
    from ..core import Attachment


@register("border")
class Border(Edit):
    """The picture x [batch, 3, size, size] with ``width`` learned pixels on every side:

        [ top; [left, x, right]; bottom ],   each pixel (t - mean) / std, t ~ U(0, 1) at the start

    ``rows`` [1, 3, 2 width, size + 2 width] are top and bottom, ``columns`` [1, 3, size, 2 width] left and right.
    """

    port = "input"

    def __init__(self, site: Site, width: int, size: int, mean: list[float], std: list[float]):
        super().__init__(site)
        self.width, self.size, self.mean, self.std = width, size, mean, std
        self.rows = nn.Parameter(torch.rand(1, len(mean), 2 * width, size + 2 * width))
        self.columns = nn.Parameter(torch.rand(1, len(mean), size, 2 * width))

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 3, size, size] -> [batch, 3, size + 2 width, size + 2 width].

        Raises:
            Unfit: the picture has another size.
        """
        if x.shape[1:] != (len(self.mean), self.size, self.size):
            raise Unfit(f"the border is made for pictures {[len(self.mean), self.size, self.size]}, and here is one of "
                        f"{list(x.shape[1:])}: say size={x.shape[-1]}, or prepare square pictures of one size")
        rows, columns = (self._normalise(t).expand(len(x), -1, -1, -1).to(x.dtype) for t in (self.rows, self.columns))
        middle = torch.cat([columns[..., : self.width], x, columns[..., self.width :]], 3)
        return torch.cat([rows[:, :, : self.width], middle, rows[:, :, self.width :]], 2)

    def _normalise(self, t: Tensor) -> Tensor:
        mean, std = (torch.tensor(numbers, device=t.device, dtype=t.dtype).view(-1, 1, 1) for numbers in (self.mean, self.std))
        return (t - mean) / std


@dataclass
class VPTPad(Method):
    """A learned border of ``width`` pixels around pictures of ``size``, for networks that take pictures of any size.

    Trains 3 (2 width)(size + 2 width) + 3 size (2 width) numbers, and the head (attach with ``also_train="head"``). ``mean`` and
    ``std`` are those with which the pictures are normalised, ImageNet's unless told otherwise.
    """

    name = "vpt-pad"
    route = "input and output"
    modalities = ("image",)
    paper = "Jia et al., Visual Prompt Tuning, ECCV 2022, arXiv:2203.12119"
    trains = "a border of pixels around every picture"
    inference = "larger pictures, by `width` on every side"
    Edit = Border
    identity_at_start = False
    rate = 1e-1

    width: int = 10
    size: int = 224
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])

    def check(self) -> None:
        """Sizes are positive; there is a mean and a positive deviation for each channel."""
        need(self.width >= 1, self, "width", "at least 1")
        need(self.size >= 1, self, "size", "at least 1")
        need(len(self.mean) >= 1, self, "mean", "one number for each channel")
        need(len(self.std) == len(self.mean) and min(self.std) > 0, self, "std", "a positive number for each channel")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The border where the model is entered.

        Raises:
            Unfit: the model reads no pictures, or cuts them into patches for attention, which has a place for each.
            HalfAdapted: it has a border already.
        """
        kind = type(at.model).__name__
        try:
            attention: list[Site] = at.sites("attn.?")
        except NoSuchSite:
            attention = []
        if attention or not any(isinstance(m, nn.Conv2d) for m in at.model.modules()):
            raise Unfit(f"a border of pixels is for convolutional networks, which take pictures of any size; {kind} is none "
                        "(for vision transformers there is 'vpt')")
        if any(isinstance(edit, Border) for edit in edits_on(at.model).values()):
            raise HalfAdapted(f"{kind} has a border already, and each is made for pictures without the other")
        at.put(at.sites("model")[0], Border, **self.numbers(at.sites("model")[0]))
        keep_still(at)

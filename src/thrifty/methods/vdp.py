"""VDP: Decorate the Newcomers: Visual Domain Prompt for Continual Test Time Adaptation (Gan, Bai, Lou, Ma, Zhang, Shi, Luo;
AAAI 2023, arXiv:2212.04145)."""
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


@register("domain-prompts")
class DomainPrompts(Edit):
    """x + M_s(s) + M_a(a): two patches on every picture x [B, C, H, W], after its normalisation.

    The domain-specific s [1, C, p_s, p_s] stands in the upper left corner, the domain-agnostic a [1, C, p_a, p_a] in the lower
    right one; both are zero at first. Where they overlap they add up.
    """

    port = "call"

    def __init__(self, site: Site, channels: int, specific: int, agnostic: int):
        super().__init__(site)
        self.specific = nn.Parameter(torch.zeros(1, channels, specific, specific))
        self.agnostic = nn.Parameter(torch.zeros(1, channels, agnostic, agnostic))

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the model, with other pictures.

        Raises:
            Unfit: the pictures are smaller than a patch.
        """
        place, x = pictures.find(args, kwargs)
        h, w = x.shape[2:]
        largest = max(self.specific.shape[-1], self.agnostic.shape[-1])
        if min(h, w) < largest:
            raise Unfit(f"patches of {largest} pixels do not fit on pictures of {h} × {w}")
        s, a = self.specific.shape[-1], self.agnostic.shape[-1]
        added = F.pad(self.specific, (0, w - s, 0, h - s)) + F.pad(self.agnostic, (w - a, 0, h - a, 0))
        return pictures.exchange(args, kwargs, place, x + added.to(x.dtype))


@dataclass
class VDP(Method):
    """Two patches of pixels that learn while the model is used, from a stream of pictures without labels. A reconstruction.

    The weights of the model stay as they are. This puts the patches on the model; ``thrifty.online.VDP`` lets them learn:

        at = thrifty.attach(model, thrifty.VDP())
        adapt = online.VDP(at, augment=online.Augment(mean, std))
        for batch in stream:
            logits = adapt(batch)

    ``specific`` and ``agnostic`` are the sizes of the patches. The paper gives neither their places nor their sizes.
    """

    name = "vdp"
    aliases = ("visual-domain-prompt",)
    route = "input and output"
    modalities = ("image",)
    paper = "Gan et al., Visual Domain Prompt for Continual Test Time Adaptation, AAAI 2023, arXiv:2212.04145"
    trains = "two patches on every picture, while the model is used and without labels (thrifty.online)"
    inference = "one addition per picture; learning costs a backward pass per batch"

    specific: int = 8
    agnostic: int = 8

    def check(self) -> None:
        """Sizes are sizes."""
        need(self.specific >= 1, self, "specific", "at least 1")
        need(self.agnostic >= 1, self, "agnostic", "at least 1")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The patches where the model is entered.

        Raises:
            Unfit: the model reads no pictures.
            NoSuchSetting: a patch is larger than they are.
        """
        channels, *size = pictures.example(at).shape[1:]
        for name in ("specific", "agnostic"):
            need(getattr(self, name) <= min(size), self, name, f"at most {min(size)} on pictures of {size[0]} × {size[1]}")
        at.put(at.sites("model")[0], DomainPrompts, channels=channels, specific=self.specific, agnostic=self.agnostic)

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """There is none: nothing here learns from labels.

        Raises:
            Unfit: always.
        """
        raise Unfit("vdp learns without labels while the model is used: attach thrifty.VDP() and give its stream of batches to "
                    "thrifty.online.VDP. To learn pixels from labels use pixel-prompt")

"""Features from everywhere in a frozen network that reads pictures, each pooled to about the same size where it is seen.

The taps of Head2Toe: Utilizing Intermediate Representations for Better Transfer Learning (Evci, Dumoulin, Larochelle, Mozer;
ICML 2022, arXiv:2201.03529).
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core import Edit, Site, register
from ...core.errors import Unfit
from ...core.probe import Example, run_once

if TYPE_CHECKING:
    from ...core import Attachment

TOKENS = ("normal", "only_cls", "nopool_cls")
ROWS = "rows of the batch"
PLACES = (("attn.q", "input"), ("attn.o", "output"), ("mlp.out", "input"), ("mlp.out", "output"), ("conv", "input"))


@dataclass(frozen=True)
class Place:
    """Where a tap is: a site, its port, and whether channels are the second axis there and not the last."""

    site: Site
    port: str
    first: bool

    @property
    def key(self) -> str:
        """Under which the tap leaves its features."""
        return f"{self.port} of {self.site.path}"


@register("batch-rows")
class BatchRows(Edit):
    """Changes nothing: leaves the number of pictures in the batch, as windows of a picture are rows of their own further on."""

    port = "call"
    passive = True

    def forward(self, args: Any, kwargs: Any) -> Any:
        """All arguments of the model, as they are."""
        self.context.taps[ROWS] = len(next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)))
        return args, kwargs


@register("pooled-tap")
class PooledTap(Edit):
    """Changes nothing: leaves what it sees, pooled to about ``size`` features per picture [batch, features], under ``key``."""

    passive = True

    def __init__(self, site: Site, key: str, port: str, first: bool, size: int, tokens: str):
        super().__init__(site)
        self.key, self.port, self.first, self.size, self.tokens = key, port, first, size, tokens

    def forward(self, x: Tensor, *beside: Tensor) -> Tensor:
        """x, what the port gives first, as it is."""
        seen = x.movedim(1, -1) if self.first and x.dim() == 4 else x
        rows: int = self.context.taps[ROWS]
        if len(seen) != rows:  # the windows of a picture follow each other
            seen = seen.reshape(rows, -1, seen.shape[-1])
        self.context.taps[self.key] = pool(seen.to(self.site.dtype), self.size, tokens=self.tokens)
        return x


def pool(x: Tensor, size: int, kernel: int = 0, tokens: str = "normal") -> Tensor:
    """Maps [B, H, W, C], tokens [B, n, C] or vectors [B, C] -> [B, about ``size``], by averages that do not overlap.

    Where C reaches ``size`` (and for ``size`` 0) the average is over all places, unless ``kernel`` says over how many along an
    axis. ``tokens`` "only_cls" takes the first token alone, "nopool_cls" keeps it beside the pooled others.
    """
    width = x.shape[-1]
    if x.dim() == 4:
        if not kernel and width >= size:
            return x.mean((1, 2))
        side = kernel or max(1, x.shape[2] // math.isqrt(size // width))
        return F.avg_pool2d(x.movedim(-1, 1), side).movedim(1, -1).flatten(1)
    if x.dim() != 3:
        return x
    if tokens == "only_cls":
        return x[:, 0]
    if tokens == "nopool_cls":
        return torch.cat([x[:, 0], pool(x[:, 1:], size, kernel)], 1)
    if not kernel and width >= size:
        return x.mean(1)
    run = kernel or max(1, int(x.shape[1] / (size / width)))
    return F.avg_pool1d(x.mT, run).mT.flatten(1)


def find_places(at: Attachment, head: Site, example: Example) -> list[Place]:
    """Where the taps go, in the order in which the places are reached:

    what every attention reads and gives out, the hidden layer and the output of every feed-forward network; what every
    convolution reads, but the first, which reads the picture; the patches, what enters the first block, what the last block of
    a convolutional network and a final normalisation give out, and what the head reads. Of places that see one tensor the first.

    Raises:
        Unfit: the model does not read pictures, or it reads words as well.
    """
    every, kind = at.sites("*"), type(at.model).__name__
    roles = {site.role for site in every}
    if not roles & {"patch", "conv"} or "embed" in roles:
        raise Unfit(f"{kind} does not read pictures alone, and features are gathered from such a network (ViT, Swin, ResNet, ...)")
    attends = any(role.startswith("attn.") for role in roles)
    blocks = [i for i, site in enumerate(every) if site.role == "block"]
    wanted = [Place(site, port, role == "conv") for role, port in PLACES for site in every if site.role == role]
    wanted += [Place(site, "output", True) for site in every if site.role == "patch"]
    if blocks:
        wanted += [Place(every[blocks[0]], "input", not attends)]
        wanted += [] if attends else [Place(every[blocks[-1]], "output", True)]
        final = [site for site in every[blocks[-1] + 1 :] if site.role == "norm" and site.depth < 0]
        wanted += [Place(site, "output", False) for site in final if attends]
    wanted.append(Place(head, "input", False))
    reached = list(_reach(at.model, {place.key: place for place in wanted}, example))
    pixels = next((place for place in reached if place.site.role == "conv"), None) if "patch" not in roles else None
    return [place for place in reached if place is not pixels]


def _reach(model: nn.Module, wanted: dict[str, Place], example: Example) -> Iterator[Place]:
    """Run the model once; the places in the order in which it reaches them, without those that see a tensor seen before."""
    seen: list[tuple[Place, Tensor]] = []  # holds the tensors, so that none takes the place of another in memory

    def note(place: Place) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, out: Any = None) -> None:
            given = (*args, *kwargs.values()) if place.port == "input" else out if isinstance(out, tuple) else (out,)
            seen.append((place, next(t for t in given if isinstance(t, Tensor))))
        return hook

    handles = [place.site.module.register_forward_pre_hook(note(place), with_kwargs=True) if place.port == "input" else
               place.site.module.register_forward_hook(note(place), with_kwargs=True) for place in wanted.values()]
    try:
        run_once(model, example)
    finally:
        for handle in handles:
            handle.remove()
    known: set[int] = set()
    for place, tensor in seen:
        if id(tensor) not in known:
            known.add(id(tensor))
            yield place

"""Intrinsic dimension: Measuring the Intrinsic Dimension of Objective Landscapes (Li, Farkhoor, Liu, Yosinski; ICLR 2018,
arXiv:1804.08838), for the modules of a pretrained model one by one, as KAdaptation chooses what to adapt (He, Li, Zhang, Yang,
Wang; AAAI 2023, arXiv:2203.16329). Large projections are Fastfood transforms (Le, Sarlós, Smola; ICML 2013, arXiv:1408.3060).
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Edit, Method, Shared, Site, apply_weight, need, register
from ..core.errors import NoSuchSetting

if TYPE_CHECKING:
    from ..core import Attachment

DENSE = 1 << 24  # a projection with more entries than this is a Fastfood transform


@register("coordinates")
class Coordinates(Shared):
    """u [size], all that trains; it starts at zero."""

    def __init__(self, size: int):
        super().__init__()
        self.u = nn.Parameter(torch.zeros(size))


@register("projected")
class Projected(Edit):
    """y + layer(x, dW) + db, where dW and db are entries ``start`` to ``start`` + m of P u, P [total, size] fixed, |P_j| = 1.

    ``kind``: "dense" draws the rows of P from a normal distribution; "fastfood" makes them of Hadamard transforms H,
    permutations and signs, H G Pi H B, in memory proportional to m; "identity" is P = I, for size = total. Each site draws
    its own rows, under ``seed``, and scales them so that the columns of P are of unit length.
    """

    additive = True
    P: Tensor
    G: Tensor
    signs: Tensor
    order: Tensor

    def __init__(self, site: Site, size: int, total: int, start: int, kind: str, seed: int):
        super().__init__(site)
        self.start, self.kind, self.shape = start, kind, site.weight.shape
        self.count = entries(site)
        drawn = draw(kind, self.count, size, total, torch.Generator().manual_seed(seed)) if not site.weight.is_meta else {}
        for name in ("P", "G", "signs", "order"):
            self.register_buffer(name, drawn.get(name), persistent=False)

    def change(self) -> tuple[Tensor, Tensor | None]:
        """dW [dout, din, ...], and db [dout] where the site has a bias."""
        u: Tensor = self.context.shared.u
        if self.kind == "identity":
            flat = u[self.start : self.start + self.count]
        else:
            flat = self.P @ u if self.kind == "dense" else fastfood(u, self.count, self.G, self.signs, self.order)
        split = self.shape.numel()
        return flat[:split].view(self.shape), flat[split:] if self.count > split else None

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [..., dout], x as the site takes it."""
        weight, bias = self.change()
        moved = apply_weight(self.site.module, weight, x)
        if bias is not None:
            moved = moved + bias.view(-1, *(1 for _ in self.shape[2:]))  # behind channels stand the axes of places
        return y + moved.to(y.dtype)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W + dW and b + db."""
        change, moved = self.change()
        return weight + change.to(weight.dtype), bias if bias is None or moved is None else bias + moved.to(bias.dtype)


def entries(site: Site) -> int:
    """How many numbers the weight and the bias of a site have."""
    return site.weight.numel() + (0 if site.bias is None else site.dout)


def draw(kind: str, rows: int, size: int, total: int, generator: torch.Generator) -> dict[str, Tensor]:
    """The numbers of ``rows`` rows of a projection [total, size] whose columns have unit length; see ``Projected``."""
    if kind == "identity":
        return {}
    if kind == "dense":
        P = torch.randn(rows, size, generator=generator)
        return {"P": P / P.norm(dim=0) * (rows / total) ** 0.5}
    length = 1 << (max(rows, size) - 1).bit_length()
    G = torch.randn(length, generator=generator)
    signs = torch.randint(0, 2, (length,), generator=generator) * 2.0 - 1
    return {"G": G / (G.norm() * total**0.5), "signs": signs, "order": torch.randperm(length, generator=generator)}


def fastfood(u: Tensor, rows: int, G: Tensor, signs: Tensor, order: Tensor) -> Tensor:
    """The first ``rows`` entries of H G Pi H B u, u [size] with zeros behind it."""
    v = hadamard(F.pad(u, (0, len(G) - len(u))) * signs)
    return hadamard(v[order] * G)[:rows]


def hadamard(v: Tensor) -> Tensor:
    """H v for a vector whose length is a power of two; H H = length I."""
    length, half = len(v), 1
    while half < length:
        pairs = v.view(-1, 2, half)
        v = torch.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).flatten()
        half *= 2
    return v


@dataclass
class Subspace(Method):
    """Layers that move along a few random directions only: theta = theta_0 + P u, u [size] shared by all layers of ``where``.

    A probe, not a way to adapt well: the intrinsic dimension of a module (here, all layers of ``where``, weights and biases)
    is the smallest ``size`` with which training reaches a share, 90 % as a rule, of the score of training it whole. Rerun it
    with rising sizes, or hand ``intrinsic_dimension`` and ``choose`` a function that trains. ``projection="auto"`` takes a
    dense P while it has few entries; ``seed`` is what P is drawn from, and is all of it that a file holds.
    """

    name = "subspace"
    aliases = ("intrinsic-dimension",)
    route = "few weights"
    paper = "Li et al., Measuring the Intrinsic Dimension of Objective Landscapes, ICLR 2018, arXiv:1804.08838"
    trains = "one vector, whose random projection moves all chosen weights"
    mergeable = True
    inference = "none once merged"
    Edit = Projected
    rate = 1e-2

    size: int = 100
    projection: str = "auto"
    seed: int = 0
    where: str = "attn.?"

    def check(self) -> None:
        """Sizes are positive, the kind of projection is known."""
        need(self.size >= 1, self, "size", "at least 1")
        kinds = ("auto", "dense", "fastfood", "identity")
        need(self.projection in kinds, self, "projection", f"one of {', '.join(kinds)}")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The vector, and a projection at each layer.

        Raises:
            NoSuchSetting: there are more directions than weights, or for the identity not as many.
        """
        sites = at.sites(self.where)
        counts = [entries(site) for site in sites]
        total = sum(counts)
        if self.size > total or self.projection == "identity" and self.size != total:
            raise NoSuchSetting(f"{self.name}: {self.where!r} has {total:,} parameters, so size = {self.size:,} is too "
                                f"{'many' if self.size > total else 'few for the identity'}")
        kind = self.projection if self.projection != "auto" else "dense" if total * self.size <= DENSE else "fastfood"
        at.share(Coordinates, size=self.size)
        for i, site in enumerate(sites):
            at.put(site, Projected, size=self.size, total=total, start=sum(counts[:i]), kind=kind, seed=self.seed * len(sites) + i)


def intrinsic_dimension(score: Callable[[int], float], whole: float, sizes: Sequence[int], share: float = 0.9) -> int | None:
    """The smallest of ``sizes`` with which ``score``, which trains that many directions, reaches ``share`` of ``whole``.

    ``whole`` is the score of training the module itself. None where no size reaches it.
    """
    return next((size for size in sorted(sizes) if score(size) >= share * whole), None)


def choose(score: Callable[[str, int], float], whole: Mapping[str, float], sizes: Sequence[int], share: float = 0.9) -> str:
    """The ``where`` with the lowest intrinsic dimension of those in ``whole``, the first of equal ones: what to adapt.

        choose(lambda where, size: trained_accuracy(Subspace(size=size, where=where)), {"attn.?": 0.91, "mlp.*": 0.92}, [10, 100])

    ``whole`` holds the score of training each of them itself.

    Raises:
        NoSuchSetting: none reaches its share with any of the sizes.
    """
    found = {where: intrinsic_dimension(lambda size, where=where: score(where, size), top, sizes, share)  # type: ignore[misc]
             for where, top in whole.items()}
    reached = {where: size for where, size in found.items() if size is not None}
    if not reached:
        raise NoSuchSetting(f"none of {', '.join(whole)} reaches {share:.0%} of its score in up to {max(sizes)} directions: try "
                            "more")
    return min(reached, key=lambda where: reached[where])

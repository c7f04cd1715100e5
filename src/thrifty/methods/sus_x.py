"""SuS-X: Training-Free Name-Only Transfer of Vision-Language Models (Udandarao, Gupta, Albanie; ICCV 2023, arXiv:2211.16198)."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core import Site, need, register
from .few_shot.grid_search import Setting, grid
from .few_shot.key_cache import Grids, KeyCache
from .few_shot.support import Seen
from .tip_adapter import TipAdapter

RESCALED = ("fixed", "batch")


@register("inter-modal-cache")
class InterModalCache(KeyCache):
    """logits = s f W + alpha exp(-beta (1 - A)) L - gamma phi(M) L, A = f F^T, M_{bj} = KL(P_b || P_j)

    P = softmax(cosines with the classes / ``temperature``), of pictures and of keys (``known`` [M, K], their logarithms). phi maps
    [least M, largest M] onto [least A, largest A] by a straight line. ``batch``: those are the bounds of the pictures that are
    answered together; else they are ``span`` [4] = least M, largest M, least A, largest A, of pictures seen before.
    """

    known: Tensor
    gamma: Tensor
    span: Tensor

    def __init__(self, site: Site, names: list[str], rows: int, width: int, alpha: float, beta: float, gamma: float,
                 scale: float = 100.0, temperature: float = 0.5, batch: bool = False):
        super().__init__(site, names, rows, width, alpha, beta, scale)
        self.temperature, self.batch = temperature, batch
        self.register_buffer("known", torch.zeros(rows, len(names)))
        self.register_buffer("gamma", torch.tensor(float(gamma)))
        self.register_buffer("span", torch.zeros(4))

    @torch.no_grad()
    def fill(self, support: Seen) -> None:
        """Keep the support set, and the bounds among its own pictures."""
        super().fill(support)
        self.known.copy_((support.cosines / self.temperature).log_softmax(-1))
        self.look(support.unit, support.cosines)

    def divergence(self, cosines: Tensor) -> Tensor:
        """M [B, M] of cosines [B, K]: sum_k P log P - P log P_j, one product for all pairs."""
        logs = (cosines / self.temperature).log_softmax(-1)
        p = logs.exp()
        return (p * logs).sum(-1, keepdim=True) - p @ self.known.T

    def rescaled(self, divergence: Tensor, affinity: Tensor) -> Tensor:
        """phi(M) [B, M]; where all of M is one number, the least A."""
        low, high, least, most = bounds(divergence, affinity) if self.batch else self.span
        wide = high - low
        share = torch.where(wide == 0, 0.0, (divergence - low) / torch.where(wide == 0, 1.0, wide))
        return least + share * (most - least)

    def addition(self, f: Tensor, cosines: Tensor) -> Tensor:
        """What the cache adds [B, K]."""
        phi = self.rescaled(self.divergence(cosines), self.affinity(f))
        return super().addition(f, cosines) - self.gamma * (phi @ self.values())

    @torch.no_grad()
    def look(self, f: Tensor, cosines: Tensor) -> None:
        """Take the bounds of these pictures."""
        self.span.copy_(bounds(self.divergence(cosines), self.affinity(f)))

    def tried(self, f: Tensor, cosines: Tensor, grids: Grids) -> Iterator[tuple[Setting, Tensor]]:
        """Betas outside, then alphas, gammas inside."""
        phi = self.rescaled(self.divergence(cosines), self.affinity(f)) @ self.values()
        for setting, logits in super().tried(f, cosines, grids):
            for gamma in grids["gamma"]:
                yield {**setting, "gamma": gamma}, logits - gamma * phi


def bounds(divergence: Tensor, affinity: Tensor) -> Tensor:
    """Least and largest of both [4]."""
    return torch.stack([divergence.min(), divergence.max(), affinity.min(), affinity.max()])


@dataclass
class SuSX(TipAdapter):
    """TIP-X: Tip-Adapter that also compares what pictures and kept pictures say of the classes, with a support set that needs no
    labelled picture.

        logits = scale f W + alpha exp(-beta (1 - f F^T)) L - gamma phi(M) L
        M_bj = KL(softmax(f_b W / temperature) || softmax(F_j W / temperature))

    The support set is ``folder``, with a folder of pictures for each class (`thrifty.data.support` fills one by a generator that is
    asked for class names; the authors use Stable Diffusion, or retrieve from LAION-5B); without it the training pictures are kept,
    which is the few-shot TIP-X. Pictures are kept as they are (the authors' ten views are all the same).

    phi brings M to the range of A. The authors take both ranges from all pictures that are evaluated together, on the test set
    partly from the validation split, so that an answer depends on its neighbours: ``rescale="batch"`` does so within a batch.
    "fixed" takes them from the validation split when it is searched (before, among the kept pictures), so that each picture is
    answered for itself. With gamma = 0 it is Tip-Adapter. alpha, beta and gamma are searched on the validation split, which has
    labels, over 200,000 settings; without ``search`` no labelled picture is used, and the three numbers are choices made here.
    """

    name = "sus-x"
    aliases = ("tip-x",)
    paper = "Udandarao et al., SuS-X: Training-Free Name-Only Transfer of Vision-Language Models, ICCV 2023, arXiv:2211.16198"
    trains = "nothing: features of made, found or labelled pictures are kept"
    Cache: ClassVar[type[KeyCache]] = InterModalCache

    alpha: float = 1.0
    top_alpha: float = 50.0
    top_beta: float = 50.0
    views: int = 0
    gamma: float = 0.1
    top_gamma: float = 30.0
    steps_gamma: int = 50
    temperature: float = 0.5
    rescale: str = "fixed"
    folder: str = ""

    def check(self) -> None:
        """The temperature is positive, and the way of rescaling is known."""
        super().check()
        need(self.gamma >= 0, self, "gamma", "at least 0")
        need(self.top_gamma > 0.1, self, "top_gamma", "above 0.1, where the search begins")
        need(self.top_beta > 1, self, "top_beta", "above 1, where the search begins")
        need(self.steps_gamma >= 1, self, "steps_gamma", "at least 1")
        need(self.temperature > 0, self, "temperature", "positive")
        need(self.rescale in RESCALED, self, "rescale", "'fixed' or 'batch'")

    def looks_at(self) -> str:
        """The folder of the support set."""
        return self.folder

    def shown(self) -> tuple[str, ...]:
        """The fields that are numbers of the edit."""
        return (*super().shown(), "gamma", "temperature")

    def more(self, support: Seen) -> dict[str, Any]:
        """Whose bounds count."""
        return {"batch": self.rescale == "batch"}

    def grids(self) -> dict[str, list[float]]:
        """What the search tries of each number."""
        return {"beta": grid(1.0, self.top_beta, self.steps_beta), "alpha": grid(0.1, self.top_alpha, self.steps_alpha),
                "gamma": grid(0.1, self.top_gamma, self.steps_gamma)}

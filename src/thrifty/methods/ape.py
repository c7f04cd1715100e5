"""APE and APE-T: Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement (Zhu, Zhang, He, Zhou, Wang, Zhao,
Gao; ICCV 2023, arXiv:2304.01195)."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Site, need, register
from .few_shot.channels import choose, count_of, criterion
from .few_shot.grid_search import Setting, grid
from .few_shot.key_cache import Grids, KeyCache
from .few_shot.support import Seen
from .tip_adapter import TipAdapter

LEAST = 1e-6  # added to probabilities before their logarithm


@register("refined-cache")
class RefinedCache(KeyCache):
    """logits = s f W + alpha exp(-beta (1 - f' F'^T)) diag(exp(gamma D)) L; f' and F' [M, Q] are the chosen ``columns`` of f and F,
    brought to length one again; the first term has all channels.

    D_j = log2((1 + 1e-6) / (p_j + 1e-6)), p_j what softmax(F'_j W') gives key j's own class: keys that the text knows well count
    less.
    """

    columns: Tensor
    divergence: Tensor
    gamma: Tensor

    def __init__(self, site: Site, names: list[str], rows: int, width: int, channels: int, alpha: float, beta: float, gamma: float,
                 scale: float = 100.0):
        super().__init__(site, names, rows, channels, alpha, beta, scale)
        self.register_buffer("columns", torch.arange(channels))
        self.register_buffer("divergence", torch.zeros(rows))
        self.register_buffer("gamma", torch.tensor(float(gamma)))

    @torch.no_grad()
    def refine(self, support: Seen, columns: Tensor) -> None:
        """Keep the support set in these channels."""
        self.columns.copy_(columns)
        self.labels.copy_(support.labels)
        self.keys.copy_(F.normalize(support.unit[:, columns], dim=-1))
        self.divergence.copy_(divergence(self.keys, F.normalize(support.classes[:, columns], dim=-1), support.labels))

    def affinity(self, f: Tensor) -> Tensor:
        """f' F'^T [B, M]."""
        return F.normalize(f[:, self.columns], dim=-1) @ self.keys.T

    def values(self) -> Tensor:
        """diag(exp(gamma D)) L [M, K]."""
        return (self.gamma * self.divergence).exp()[:, None] * super().values()

    def tried(self, f: Tensor, cosines: Tensor, grids: Grids) -> Iterator[tuple[Setting, Tensor]]:
        """Betas outside, then alphas, gammas inside."""
        start, apart, bare = self.start(f, cosines), 1 - self.affinity(f), super().values()
        weighed = torch.cat([(gamma * self.divergence).exp()[:, None] * bare for gamma in grids["gamma"]], 1)
        for beta in grids["beta"]:
            caches = ((-beta * apart).exp() @ weighed).split(bare.shape[1], 1)
            for alpha in grids["alpha"]:
                for gamma, cache in zip(grids["gamma"], caches, strict=True):
                    yield {"beta": beta, "alpha": alpha, "gamma": gamma}, start + alpha * cache


def divergence(keys: Tensor, classes: Tensor, labels: Tensor) -> Tensor:
    """D [M] of unit keys [M, Q] with unit class features [K, Q]."""
    p = (keys @ classes.T).softmax(-1).gather(1, labels[:, None])[:, 0]
    return ((1 + LEAST) / (p + LEAST)).log2()


@register("residual-cache")
class ResidualCache(KeyCache):
    """logits = s f W' + alpha exp(-beta (1 - f F'^T)) diag(v) L: what class k adds, in the chosen ``columns``, to W_k and to every
    key of class k is row k of ``residual`` [K, Q], and nothing is brought to length one again. v [M] starts at one, the residual
    at zero.
    """

    columns: Tensor

    def __init__(self, site: Site, names: list[str], rows: int, width: int, channels: int, alpha: float, beta: float,
                 scale: float = 100.0):
        super().__init__(site, names, rows, width, alpha, beta, scale)
        self.register_buffer("columns", torch.arange(channels))
        self.residual = nn.Parameter(torch.zeros(len(names), channels))
        self.weights = nn.Parameter(torch.ones(rows))

    @torch.no_grad()
    def refine(self, support: Seen, columns: Tensor) -> None:
        """Keep the support set, and the channels that residuals are added to."""
        self.fill(support)
        self.columns.copy_(columns)

    def added(self, f: Tensor) -> Tensor:
        """What residuals add to products with f, of each class [B, K]."""
        return f[:, self.columns] @ self.residual.T

    def cosines(self, f: Tensor, cosines: Tensor) -> Tensor:
        """f W' [B, K]."""
        return cosines + self.added(f)

    def affinity(self, f: Tensor) -> Tensor:
        """f F'^T [B, M]."""
        return f @ self.keys.T + self.added(f)[:, self.labels]

    def values(self) -> Tensor:
        """diag(v) L [M, K]."""
        return self.weights[:, None] * super().values()


@dataclass
class APE(TipAdapter):
    """Tip-Adapter in those channels that tell the classes apart, and with less of what the text knows already; nothing trains.

        logits = scale f W + alpha exp(-beta (1 - f' F'^T)) diag(exp(gamma D)) L,   ' the best ``share`` of the channels

    Channels are ranked by J = -``similar`` S + ``varied`` V: S how alike vectors of different classes are, over class features and
    kept pictures, V the variance of class features. D_j is near -log2 of the probability that key j's class has by its text.
    With all channels and gamma = 0 it is Tip-Adapter. Searched on the validation split: alpha, beta, gamma (from 0 on).

    Defaults are ImageNet's with ResNet-50, whose features have 1024 channels, of which 500 are kept. For other sets the authors
    keep 400 to 800, with ``similar`` and ``varied`` from 0.1 and 0.9 to 0.9 and 0.1, and search on the full validation split (on
    ImageNet that is the test set).
    """

    name = "ape"
    aliases = ()
    paper = ("Zhu et al., Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement, ICCV 2023, "
             "arXiv:2304.01195")
    Cache: ClassVar[type[KeyCache]] = RefinedCache

    alpha: float = 2.0
    top_alpha: float = 7.0
    share: float = 500 / 1024
    similar: float = 0.7
    varied: float = 0.3
    gamma: float = 0.1
    top_gamma: float = 0.5
    steps_gamma: int = 5

    def check(self) -> None:
        """A share is a share, nothing is negative."""
        super().check()
        need(0 < self.share <= 1, self, "share", "above 0, and 1 at most")
        for name in ("similar", "varied", "gamma", "top_gamma"):
            need(getattr(self, name) >= 0, self, name, "at least 0")
        need(self.steps_gamma >= 1, self, "steps_gamma", "at least 1")

    def shown(self) -> tuple[str, ...]:
        """The fields that are numbers of the edit."""
        return (*super().shown(), "gamma")

    def more(self, support: Seen) -> dict[str, Any]:
        """How many channels are kept."""
        return {"channels": count_of(self.share, support.raw.shape[1])}

    def fill(self, made: Any, support: Seen) -> None:
        """Choose channels, and keep the support set in them."""
        made.refine(support, choose(self.rank(support), len(made.columns)))

    def rank(self, support: Seen) -> Tensor:
        """J [d]."""
        return criterion(support, self.similar, self.varied)

    def grids(self) -> dict[str, list[float]]:
        """What the search tries of each number."""
        return {**super().grids(), "gamma": grid(0.0, self.top_gamma, self.steps_gamma)}


@dataclass
class APET(APE):
    """APE with residuals that train: one for each class, added in the chosen channels to its text and to its keys.

        logits = scale f W' + alpha exp(-beta (1 - f F'^T)) diag(v) L,   CE,   W'_k = W_k + r_k, F'_j = F_j + r_class(j)

    It starts as Tip-Adapter. Products are over all channels, and there is no D. ``channels_by`` "text" ranks channels by class
    features alone, as the released code does; "both" is what the paper says. The authors train by AdamW with decay 0.1, rate
    1e-4 or 1e-3 by data set (epsilon 1e-3), batch 256, a cosine, 20 to 200 epochs, on chance crops, and then search alpha and beta.
    """

    name = "ape-t"
    trains = "a residual for each class in the chosen channels, and what each kept picture counts"
    solved = False
    rate = 1e-4
    Cache: ClassVar[type[KeyCache]] = ResidualCache

    similar: float = 0.2
    varied: float = 0.8
    channels_by: str = "text"

    def check(self) -> None:
        """What ranks channels is known."""
        super().check()
        need(self.channels_by in ("text", "both"), self, "channels_by", "'text' or 'both'")

    def shown(self) -> tuple[str, ...]:
        """The fields that are numbers of the edit."""
        return ("alpha", "beta", "scale")

    def rank(self, support: Seen) -> Tensor:
        """J [d]."""
        return criterion(support, self.similar, self.varied, text_only=self.channels_by == "text")

"""DeFo: Learning to Decompose Visual Features with Latent Textual Prompts (Wang, Li, Liu, Yang, Hu, Zhang, Xu; ICLR 2023,
arXiv:2210.04287)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import Edit, Method, Site, need, register
from .prompts.context import SPREAD, place, refuse_others, sentences

if TYPE_CHECKING:
    from ..core import Attachment


@register("queries")
class Queries(Edit):
    """n sentences of m learned vectors each, and no name, in the place of those about classes; X [n, m, width] ~ N(0, 0.02²)."""

    port = "call"
    constant = True

    def __init__(self, site: Site, queries: int, length: int):
        super().__init__(site)
        width: Any = site.module.towers.text_width  # type: ignore[union-attr]
        self.X = nn.Parameter(SPREAD * torch.randn(queries, length, width))

    def forward(self, args: Any, kwargs: Any) -> Any:
        """The text tower's own sentences -> (x [1, 1, n, T, width], ends [1, 1, n])."""
        tower: Any = self.site.module
        ids, ends = tower.texts.lay([[0] * self.X.shape[1]], labelled=False)
        before, (n, m, _) = len(tower.texts.reader.begin), self.X.shape
        frame = tower.embed(ids).expand(n, -1, -1)
        x = torch.cat([frame[:, :before], self.X.to(frame.dtype), frame[:, before + m :]], 1)
        return (x[None, None], ends.to(x.device).expand(1, 1, n)), {}


@register("query-head")
class QueryHead(Edit):
    """V (scale S) + c with S [B, n] the cosines to the queries; V [C, n], c [C] with the usual start of a linear layer."""

    def __init__(self, site: Site, queries: int, names: list[str], scale: float = 1.0):
        super().__init__(site)
        self.names, self.scale = names, scale
        self.V = nn.Linear(queries, len(names))

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y = s S + b [B, n] -> [B, C]."""
        towers: Any = self.site.module.towers
        refuse_others(self, self.context.home.model.texts)
        shift = towers.shift()
        cosines = (y if shift is None else y - shift) / towers.scale()
        return self.V((self.scale * cosines).to(self.V.weight.dtype)).to(y.dtype)


@dataclass
class DeFo(Method):
    """n learned queries without a class, and a linear head on the cosines to them:

        t_i = g(x_i1 .. x_im),  S_i = cos(f, t_i),  logits = V (scale S) + c          V [C, n], c [C]

    So the text tower costs the same for any number of classes, and the classifier is a linear probe of rank n. It has no answers
    before it is trained, and none for new classes. A reconstruction: the start of X and V, and the ``scale`` before the head, are
    ours; n = 256 and m = 16 are the paper's.
    """

    name = "defo"
    route = "input and output"
    modalities = ("image", "text")
    paper = "Wang et al., Learning to Decompose Visual Features with Latent Textual Prompts, ICLR 2023, arXiv:2210.04287"
    trains = "sentences of vectors without a class, and a head on the cosines to them"
    inference = "nothing: features of the queries are computed once"
    needs = "an image-text model"
    identity_at_start = False
    rate = 2e-3

    queries: int = 256
    length: int = 16
    scale: float = 1.0

    def check(self) -> None:
        """Sizes and scale are positive."""
        need(self.queries >= 1, self, "queries", "at least 1")
        need(self.length >= 1, self, "length", "at least 1")
        need(self.scale > 0, self, "scale", "positive")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Queries in the place of sentences, and the head on the scores.

        Raises:
            Unfit: the model does not know classes by their names.
        """
        text = sentences(at)
        texts: Any = text.module.texts
        at.put(text, Queries, queries=self.queries, length=self.length)
        at.put(place(at, "scores"), QueryHead, queries=self.queries, names=texts.labels, scale=self.scale)

"""KAdaptation: Parameter-Efficient Model Adaptation for Vision Transformers (He, Li, Zhang, Yang, Wang; AAAI 2023,
arXiv:2203.16329)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import Edit, Method, Shared, Site, need, register
from ..core.errors import CannotMerge, NoSuchSetting, Unfit
from .compacter import kronecker

if TYPE_CHECKING:
    from ..core import Attachment


@register("kronecker-shared")
class Slow(Shared):
    """What all layers share: per kind of projection A [n, n, n], A_i = a_i b_i of rank ``slow``; and the bias of each layer.

    a [n, n, slow] and b [n, slow, n] start uniform in (-0.01, 0.01), biases at zero. With ``slow`` = 0 each A_i is whole.
    """

    def __init__(self, kinds: int, n: int, slow: int, widths: list[int]):
        super().__init__()
        self.a = nn.ParameterList(torch.empty(n, n, slow or n).uniform_(-0.01, 0.01) for _ in range(kinds))
        self.b = nn.ParameterList(torch.empty(n, slow, n).uniform_(-0.01, 0.01) for _ in range(kinds if slow else 0))
        self.bias = nn.ParameterList(torch.zeros(width) for width in widths)

    def A(self, kind: int) -> Tensor:
        """[n, n, n]: n matrices."""
        return self.a[kind] @ self.b[kind] if len(self.b) else self.a[kind]


@register("kronecker-sum")
class KroneckerSum(Edit):
    """y + s x H + b with H = drop(sum_{i=1..n} A_i (kron) u_i v_i) [din, dout]; dropout acts on H itself.

    A [n, n, n] is that of the ``kind`` of projection, b [dout] that of the ``layer`` (none if -1): both are shared. u [n,
    din / n, rank] starts by Xavier's uniform rule, matrix by matrix, v [n, rank, dout / n] at zero, so that the model starts
    unchanged and v is what moves first.
    """

    additive = True

    def __init__(self, site: Site, n: int, rank: int, scale: float, dropout: float, kind: int, layer: int):
        super().__init__(site)
        self.scale, self.kind, self.layer, self.dropout = scale, kind, layer, nn.Dropout(dropout)
        self.u = nn.Parameter(torch.empty(n, site.din // n, rank))
        self.v = nn.Parameter(torch.zeros(n, rank, site.dout // n))
        for matrix in self.u:
            nn.init.xavier_uniform_(matrix)

    def matrix(self) -> Tensor:
        """sum_i A_i (kron) u_i v_i [din, dout]."""
        return kronecker(self.context.shared.A(self.kind), self.u @ self.v)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [..., dout], x [..., din] -> [..., dout]."""
        change = self.scale * (x.to(self.u.dtype) @ self.dropout(self.matrix()))
        if self.layer >= 0:
            change = change + self.context.shared.bias[self.layer]
        return y + change.to(y.dtype)

    def delta(self, weight: Tensor) -> Tensor:
        """s H', in the shape of ``weight`` [dout, din]."""
        return self.scale * self.matrix().T

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight with s H', the bias with b.

        Raises:
            CannotMerge: the site has no bias to hold b.
        """
        weight, bias = super().fold(weight, bias)
        if self.layer < 0:
            return weight, bias
        if bias is None:
            raise CannotMerge(f"{self.site.path!r} has no bias, into which that of KAdaptation could be merged: train with "
                              "bias='none'")
        return weight, bias + self.context.shared.bias[self.layer].to(bias.dtype)


@dataclass
class KAdaptation(Method):
    """Sums of Kronecker products beside the query and value projections, whose left factors are the same in all layers.

        x -> x (W + s dW) + b,   dW = sum_{i=1..n} A_i (kron) B_i,   A_i = a_i b_i,   B_i = u_i v_i     x a row

    A_i [n, n], of rank ``slow``, are slow weights: one set for all query projections and one for all value projections. B_i
    [din / n, dout / n], of rank ``rank``, are fast ones, a set for each projection. rank(dW) <= n rank(A_i) rank(B_i). Dropout
    acts on dW. ``bias="layer"`` is the authors': one b per layer, which its projections share; "own" gives each its own.

    Which projections to adapt is a measurement: those of the modules with the lowest local intrinsic dimension, which in CLIP
    are the attentions; see ``thrifty.methods.subspace.choose``. The authors adapt CLIP's image encoder and start the head
    from its words. In the code that they released both u and v start at zero, so that neither ever moves, and the value
    projections read the query's factors; this follows the equations.
    """

    name = "kadaptation"
    route = "inject parameters"
    modalities = ("image",)
    paper = "He et al., Parameter-Efficient Model Adaptation for Vision Transformers, AAAI 2023, arXiv:2203.16329"
    trains = "sums of Kronecker products beside q and v, with left factors that all layers share, and a bias per layer"
    mergeable = True
    inference = "none once merged"
    Edit = KroneckerSum
    rate = 1e-3

    n: int = 32
    rank: int = 1
    slow: int = 1
    scale: float = 160.0
    dropout: float = 0.5
    bias: str = "layer"
    where: str = "attn.q|attn.v"

    def check(self) -> None:
        """Numbers are positive where they must be, the kind of bias is known."""
        need(self.n >= 1, self, "n", "at least 1")
        need(self.rank >= 1, self, "rank", "at least 1")
        need(self.slow >= 0, self, "slow", "positive, or 0 for whole left factors")
        need(self.scale > 0, self, "scale", "positive")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")
        need(self.bias in ("layer", "own", "none"), self, "bias", "'layer', 'own' or 'none'")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """What all share, and an edit for each projection.

        Raises:
            NoSuchSetting: n does not divide a width. Unfit: projections that share a bias differ in width.
        """
        sites = at.sites(self.where)
        for site in sites:
            if site.din % self.n or site.dout % self.n:
                fit = [n for n in range(1, 65) if site.din % n == 0 and site.dout % n == 0]
                raise NoSuchSetting(f"{self.name}: n = {self.n} does not divide the widths {site.din} and {site.dout} of "
                                    f"{site.path!r}; {', '.join(map(str, fit))} do")
        kinds = list(dict.fromkeys(site.role for site in sites))
        layers = [site.key if self.bias == "own" else (site.stack, site.depth) for site in sites]
        widths = dict(zip(layers, (site.dout for site in sites), strict=True)) if self.bias != "none" else {}
        for site, layer in zip(sites, layers, strict=True):
            if widths.get(layer, site.dout) != site.dout:
                raise Unfit(f"{site.path!r} is {site.dout} wide and shares a bias with a projection of {widths[layer]}: set "
                            "bias='own'")
        at.share(Slow, kinds=len(kinds), n=self.n, slow=self.slow, widths=list(widths.values()))
        for site, layer in zip(sites, layers, strict=True):
            at.put(site, KroneckerSum, n=self.n, rank=self.rank, scale=self.scale, dropout=self.dropout,
                   kind=kinds.index(site.role), layer=list(widths).index(layer) if widths else -1)

"""FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer (Jie, Deng; AAAI 2023, arXiv:2212.03145)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Branch, Method, Shared, Site, need, register
from ..core.errors import Unfit

if TYPE_CHECKING:
    from ..core import Attachment


@register("fact-factors")
class SharedFactors(Shared):
    """U [rank, d] and V [d, rank] for each width d of the trunk; in Tucker's form also a core C and P.

    ``slices`` says for each width how many d × d slices the weights of that width have. C is [rank, rank, rank], P [rank, slices],
    both Xavier-uniform; U is drawn as nn.Linear draws its weight, V is zero.
    """

    def __init__(self, rank: int, slices: dict[str, int], tucker: bool):
        super().__init__()
        self.U = nn.ParameterDict({d: torch.empty(rank, int(d)) for d in slices})
        self.V = nn.ParameterDict({d: torch.zeros(int(d), rank) for d in slices})
        for U in self.U.values():
            nn.init.kaiming_uniform_(U, a=5**0.5)
        if tucker:
            self.C = nn.ParameterDict({d: torch.empty(rank, rank, rank) for d in slices})
            self.P = nn.ParameterDict({d: torch.empty(rank, count) for d, count in slices.items()})
            for t in (*self.C.values(), *self.P.values()):
                nn.init.xavier_uniform_(t)


@register("fact")
class Slices(Branch):
    """y + s V dropout(S (U x)) for a layer of ``width``-wide slices: p of them side by side in x, q in y.

    Each slice of x passes through the same U, each slice of y comes out of the same V, and S [q rank, p rank] mixes them. In the
    tensor-train form S is the edit's own, drawn as nn.Linear draws its weight. In Tucker's (``first`` >= 0) it is made of the
    slices C P[:, first : first + p q] [rank, rank, p q] and acts on rows, (U x) S. The authors' "code" flattens the last two axes
    of those as they lie in memory, so that several slices mix; "paper" keeps each slice in one piece.
    """

    additive = True

    def __init__(self, site: Site, width: int, rank: int, scale: float, dropout: float, first: int = -1, layout: str = "code"):
        super().__init__(site)
        self.width, self.rank, self.scale, self.first, self.layout = str(width), rank, scale, first, layout
        self.p, self.q = site.din // width, site.dout // width
        self.dropout = nn.Dropout(dropout)
        if first < 0:
            self.S = nn.Parameter(torch.empty(self.q * rank, self.p * rank))
            nn.init.kaiming_uniform_(self.S, a=5**0.5)

    def read(self, y: Tensor, x: Tensor) -> Tensor:
        """x [..., p width]."""
        return x

    def branch(self, h: Tensor) -> Tensor:
        """s V dropout(S (U h)) [..., q width]."""
        U, V = self.ends()
        low = F.linear(h.to(U.dtype).unflatten(-1, (self.p, -1)), U).flatten(-2)
        mixed = self.dropout(F.linear(low, self.middle())).unflatten(-1, (self.q, self.rank))
        return self.scale * F.linear(mixed, V).flatten(-2)

    def ends(self) -> tuple[Tensor, Tensor]:
        """U [rank, width] and V [width, rank], which all layers of this width share."""
        shared = self.context.shared
        return shared.U[self.width], shared.V[self.width]

    def middle(self) -> Tensor:
        """S [q rank, p rank]."""
        if self.first < 0:
            return self.S
        shared, count = self.context.shared, self.p * self.q
        slices = shared.C[self.width] @ shared.P[self.width][:, self.first : self.first + count]  # [in, out, slice]
        if self.p > 1:
            slices = slices if self.layout == "code" else slices.permute(1, 2, 0)
            return slices.reshape(self.rank, -1)
        return (slices if self.layout == "code" else slices.permute(0, 2, 1)).reshape(self.rank, -1).T

    def delta(self, weight: Tensor) -> Tensor:
        """s V S_ij U in the block of the i-th slice of y and the j-th of x."""
        (U, V), S = (t.to(weight.dtype) for t in self.ends()), self.middle().to(weight.dtype)
        blocks = S.view(self.q, self.rank, self.p, self.rank)
        return self.scale * torch.einsum("dr,qrps,se->qdpe", V, blocks, U).reshape(weight.shape)


@dataclass
class FacT(Method):
    """The changes of all weights as one tensor of d × d slices, decomposed: dW_j = s V S_j U, with U and V shared by all layers.

    A block has 12 slices: q, k, v, o, four of the first feed-forward layer and four of the second. ``form`` "tt" (tensor train)
    gives each layer its S [rank, rank] per slice; "tk" (Tucker) makes all of them from a core C [rank, rank, rank] and
    P [rank, 12 L]. V starts at zero, so the model starts unchanged. Rank and s vary by task: 8 or 16 in the tensor train, 16 or
    32 in Tucker's form, s from 0.01 to 100. Where stages differ in width (Swin), each width has its own factors, a reconstruction.
    ``layout="paper"`` keeps Tucker's slices in one piece; the authors' code does not, see ``Slices``.
    """

    name = "fact"
    aliases = ("fact-tt", "factor-tuning")
    presets = {"fact-tk": {"form": "tk", "rank": 32}}
    route = "inject parameters"
    paper = "Jie & Deng, FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer, AAAI 2023, arXiv:2212.03145"
    trains = "two factors that all layers share, and what mixes between them"
    mergeable = True
    inference = "none once merged"
    rate = 1e-3
    Edit = Slices

    form: str = "tt"
    rank: int = 16
    scale: float = 1.0
    dropout: float = 0.1
    layout: str = "code"
    where: str = "attn.?|mlp.*"

    def check(self) -> None:
        """Ranks are positive, dropout is a probability, form and layout are known."""
        need(self.form in ("tt", "tk"), self, "form", "'tt' or 'tk'")
        need(self.rank >= 1, self, "rank", "at least 1")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")
        need(self.layout in ("code", "paper"), self, "layout", "'code' or 'paper'")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The shared factors, and an edit per layer.

        Raises:
            Unfit: a layer is no linear one, or its weight is not made of square slices.
        """
        found = at.sites(self.where)
        widths = [_width(site) for site in found]
        count: dict[str, int] = {}
        first: list[int] = []
        for site, d in zip(found, widths, strict=True):
            first.append(count.get(str(d), 0))
            count[str(d)] = first[-1] + site.din * site.dout // d**2
        at.share(SharedFactors, rank=self.rank, slices=count, tucker=self.form == "tk")
        for site, d, start in zip(found, widths, first, strict=True):
            at.put(site, Slices, width=d, rank=self.rank, scale=self.scale, dropout=self.dropout,
                   first=start if self.form == "tk" else -1, layout=self.layout)


def _width(site: Site) -> int:
    """The width of the slices of a weight: its smaller side, of which the larger one is a multiple."""
    d = min(site.din, site.dout)
    if site.din % d or site.dout % d or isinstance(site.module, (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        raise Unfit(f"{site.path!r} ({type(site.module).__name__}) maps {site.din} to {site.dout}: FacT wants linear layers whose "
                    "weight is a row or column of square slices, so leave this one out of where=")
    return d

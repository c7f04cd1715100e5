"""The low-rank adapter that Compacter is compared with: Compacter: Efficient Low-Rank Hypercomplex Adapter Layers (Karimi
Mahabadi, Henderson, Ruder; NeurIPS 2021, arXiv:2106.04647)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import Method, Site, need, register
from .branches.bottleneck import ACTS
from .compacter import InSublayer

if TYPE_CHECKING:
    from ..core import Attachment


class Factored(nn.Module):
    """x U V + b with U [din, k], V [k, dout], both from Xavier's uniform rule with gain sqrt(2), and b at zero."""

    def __init__(self, din: int, dout: int, k: int):
        super().__init__()
        self.U, self.V = nn.Parameter(torch.empty(din, k)), nn.Parameter(torch.empty(k, dout))
        self.b = nn.Parameter(torch.zeros(dout))
        for matrix in (self.U, self.V):
            nn.init.xavier_uniform_(matrix, gain=2**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., din] -> [..., dout]."""
        return x @ self.U @ self.V + self.b


@register("factored-bottleneck")
class FactoredBottleneck(InSublayer):
    """z(y) = act(y U_d V_d + b_d) U_u V_u + b_u through ``rank`` hidden units, each product of rank k."""

    def __init__(self, site: Site, rank: int, k: int, act: str):
        super().__init__(site)
        self.down, self.up, self.act = Factored(site.dout, rank, k), Factored(rank, site.dout, k), ACTS[act]

    def branch(self, h: Tensor) -> Tensor:
        """z(h) [..., d], in the precision of the parameters."""
        return self.up(self.act(self.down(h.to(self.up.b.dtype))))


@dataclass
class LowRankAdapter(Method):
    """Adapters after self-attention and feed-forward network whose two weights are products of rank k.

        y + z(y),  z(y) = gelu(y U_d V_d + b_d) U_u V_u + b_u

    with U_d [d, k], V_d [k, rank], U_u [rank, k], V_u [k, d]. (The authors' code multiplies the factors entry by entry, which is
    this for k = 1 and nothing else.) Every normalisation trains too. A ``rank`` of 0 stands for d / 32.
    """

    name = "low-rank-adapter"
    route = "add modules"
    paper = "Karimi Mahabadi et al., Compacter: Efficient Low-Rank Hypercomplex Adapter Layers, NeurIPS 2021, arXiv:2106.04647"
    trains = "two bottlenecks of low rank per layer, and every normalisation"
    inference = "two small networks more per layer"
    Edit = FactoredBottleneck
    identity_at_start = False
    rate = 3e-3

    rank: int = 0
    k: int = 1
    act: str = "gelu_tanh"
    norms: bool = True
    where: str = "after.attn|after.mlp"

    def check(self) -> None:
        """Ranks are positive, the activation is known."""
        need(self.rank >= 0, self, "rank", "positive, or 0 for a 32nd of the width")
        need(self.k >= 1, self, "k", "at least 1")
        need(self.act in ACTS, self, "act", f"one of {sorted(ACTS)}")

    def numbers(self, site: Site) -> dict[str, Any]:
        """The paper's sizes."""
        return {"rank": self.rank or max(1, site.dout // 32), "k": self.k, "act": self.act}

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The adapters, and the normalisations in place."""
        super().attach(at, batches)
        if self.norms:
            at.train_matching("norm*", wildcard=True)

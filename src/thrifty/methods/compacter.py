"""Compacter, Compacter++ and the PHM adapter: Compacter: Efficient Low-Rank Hypercomplex Adapter Layers (Karimi Mahabadi,
Henderson, Ruder; NeurIPS 2021, arXiv:2106.04647)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import Branch, Method, Shared, Site, need, register
from ..core.errors import NoSuchSetting
from .branches.bottleneck import ACTS

if TYPE_CHECKING:
    from ..core import Attachment


@register("hypercomplex-rules")
class Rules(Shared):
    """A [n, n, n]: the n left factors of every hypercomplex layer, one parameter for the whole model. A ~ N(0, std)."""

    def __init__(self, n: int, std: float):
        super().__init__()
        self.A = nn.Parameter(torch.empty(n, n, n).normal_(std=std))


def kronecker(A: Tensor, B: Tensor) -> Tensor:
    """sum_i A_i (kron) B_i [P R, Q C], for A [n, P, Q] and B [n, R, C]: its block (p, q) is sum_i A_i[p, q] B_i."""
    return torch.einsum("ipq,irc->prqc", A, B).reshape(A.shape[1] * B.shape[1], A.shape[2] * B.shape[2])


class Hypercomplex(nn.Module):
    """x W + b with W = sum_i A_i (kron) B_i [din, dout], A_i [n, n] and B_i = s_i t_i [din / n, dout / n] of rank k.

    Block (p, q) of W is sum_i A_i[p, q] B_i. With ``k`` = 0 each B_i is whole. s, t and B start by Xavier's uniform rule with
    gain sqrt(2), matrix by matrix, b at zero. With ``own`` > 0 the layer has an A of its own, from N(0, own).
    """

    def __init__(self, din: int, dout: int, n: int, k: int, own: float = 0.0):
        super().__init__()
        if k:
            self.s, self.t = nn.Parameter(torch.empty(n, din // n, k)), nn.Parameter(torch.empty(n, k, dout // n))
        else:
            self.B = nn.Parameter(torch.empty(n, din // n, dout // n))
        for stack in self.parameters():
            for matrix in stack:
                nn.init.xavier_uniform_(matrix, gain=2**0.5)
        self.A = nn.Parameter(torch.empty(n, n, n).normal_(std=own)) if own else None
        self.b = nn.Parameter(torch.zeros(dout))
        self.factored = k > 0

    def weight(self, A: Tensor) -> Tensor:
        """W [din, dout], from the left factors ``A`` [n, n, n]."""
        return kronecker(A, self.s @ self.t if self.factored else self.B)

    def forward(self, x: Tensor, A: Tensor | None) -> Tensor:
        """x [..., din] -> [..., dout]; ``A`` [n, n, n] is read where the layer has none of its own."""
        A = A if self.A is None else self.A
        assert A is not None, "a layer without left factors of its own is given those that all share"
        return x @ self.weight(A) + self.b


class InSublayer(Branch):
    """y + z(y) where a sub-layer ends, before its dropout: at the dropout's input, if the site is one."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.port = "input" if isinstance(site.module, nn.Dropout) else "output"


@register("hypercomplex")
class HypercomplexAdapter(InSublayer):
    """z(y) = act(y W_down + b_down) W_up + b_up, both W hypercomplex. With ``own`` = 0 they share the model's A."""

    def __init__(self, site: Site, rank: int, n: int, k: int, act: str, own: float = 0.0):
        super().__init__(site)
        self.down, self.up = Hypercomplex(site.dout, rank, n, k, own), Hypercomplex(rank, site.dout, n, k, own)
        self.act = ACTS[act]

    def branch(self, h: Tensor) -> Tensor:
        """z(h) [..., d], in the precision of the parameters."""
        A = None if self.context.shared is None else self.context.shared.A
        return self.up(self.act(self.down(h.to(self.up.b.dtype), A)), A)


@dataclass
class Compacter(Method):
    """Adapters after self-attention and feed-forward network whose weights are sums of Kronecker products.

        y + z(y),  z(y) = gelu(y W_down + b_down) W_up + b_up,  W = sum_{i=1..n} A_i (kron) s_i t_i

    with A [n, n, n] the same for every W of the model, s_i [din / n, k], t_i [k, dout / n], W_down [d, rank], W_up [rank, d]:
    one adapter is 2 k (d + rank) + rank + d numbers, and n^3 more are shared by all. Cross-attention gets none. Every
    normalisation trains too. A starts at N(0, 1e-4), so the model starts as the base but for rounding, and needs large steps.

    "compacter++" adapts the feed-forward networks only. ``shared=False`` gives every W an A of its own, from N(0, 0.01) (a
    variant that T-Few compares with), and ``k=0`` keeps the B_i whole. A ``rank`` of 0 stands for d / 32, rounded up to a
    multiple of ``n``, which must divide both widths.
    """

    name = "compacter"
    presets = {"compacter++": {"where": "after.mlp"}}
    route = "add modules"
    paper = "Karimi Mahabadi et al., Compacter: Efficient Low-Rank Hypercomplex Adapter Layers, NeurIPS 2021, arXiv:2106.04647"
    trains = "two bottlenecks of Kronecker products per layer, their shared factors, and every normalisation"
    inference = "two small networks more per layer"
    Edit = HypercomplexAdapter
    rate = 3e-3

    rank: int = 0
    n: int = 4
    k: int = 1
    shared: bool = True
    act: str = "gelu_tanh"
    norms: bool = True
    where: str = "after.attn|after.mlp"

    def check(self) -> None:
        """Numbers are positive where they must be, the activation is known."""
        need(self.n >= 1, self, "n", "at least 1")
        need(self.k >= 0, self, "k", "positive, or 0 for whole factors")
        need(self.rank >= 0 and self.rank % self.n == 0, self, "rank", f"a multiple of n = {self.n}, or 0 for a 32nd of the width")
        need(self.act in ACTS, self, "act", f"one of {sorted(ACTS)}")

    def numbers(self, site: Site) -> dict[str, Any]:
        """The paper's sizes.

        Raises:
            NoSuchSetting: n does not divide the width.
        """
        if site.dout % self.n:
            fit = [n for n in range(1, 17) if site.dout % n == 0 and (self.rank % n == 0)]
            raise NoSuchSetting(f"{self.name}: n = {self.n} does not divide the width {site.dout} of {site.path!r}; "
                                f"{', '.join(map(str, fit))} do")
        rank = self.rank or -(-site.dout // (32 * self.n)) * self.n
        return {"rank": rank, "n": self.n, "k": self.k, "act": self.act, "own": 0.0 if self.shared else 0.01}

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The factors that all share, the adapters, and the normalisations in place."""
        if self.shared:
            at.share(Rules, n=self.n, std=1e-4)
        super().attach(at, batches)
        if self.norms:
            at.train_matching("norm*", wildcard=True)


@dataclass
class PHMAdapter(Compacter):
    """The adapter that Compacter makes smaller: every W has its own A [n, n, n], from N(0, 0.01), and the B_i are whole.

        W = sum_{i=1..n} A_i (kron) B_i,  B_i [din / n, dout / n]
    """

    name = "phm-adapter"
    presets = {}
    trains = "two bottlenecks of Kronecker products per layer, and every normalisation"
    identity_at_start = False

    n: int = 12
    k: int = 0
    shared: bool = False

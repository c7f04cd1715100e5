"""The bypass of Res-Tuning: A Flexible and Efficient Tuning Paradigm via Unbinding Tuner from Backbone (Jiang, Mao, Huang, Ma,
Lv, Shen, Zhao, Zhou; NeurIPS 2023, arXiv:2310.19859)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Edit, Method, Site, need, register
from .branches.side import SideTap, asked, hear, parameters, stacks

if TYPE_CHECKING:
    from ..core import Attachment


class ResAdapter(nn.Module):
    """RT(x) = x + Up(GELU(Down(x))), Down [d -> rank], Up [rank -> d]; Xavier-uniform weights, biases from N(0, 1e-6).

    With ``zero`` Up starts as nothing, and RT as the identity.
    """

    def __init__(self, width: int, rank: int, zero: bool):
        super().__init__()
        self.down, self.up = nn.Linear(width, rank), nn.Linear(rank, width)
        for layer in (self.down, self.up):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)
        if zero:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] -> [..., d]."""
        y: Tensor = x + self.up(F.gelu(self.down(x)))
        return y


@register("bypass")
class Bypass(Edit):
    """Gives x^b_L for the output of the last of L blocks. With x_0 what the first block takes in and x_l the l-th output,

        x^b_0 = x_0,   x^b_l = λ_l RT_h(x_l) + (1 - λ_l) RT_v(x^b_(l-1)),   x [..., d]

    where each RT is a ``ResAdapter`` of its own. ``mix``: "learned" has λ_l = sigmoid(g_l), g_l starting at zero; "half" has
    λ = 1/2; "sum" has no λ and adds the two. Nothing of the L blocks is in the graph.
    """

    def __init__(self, site: Site, blocks: list[str], width: int, rank: int, mix: str, zero: bool):
        super().__init__(site)
        self.blocks, self.mix, self.states = blocks, mix, parameters(site.module)[0]
        self.horizontal = nn.ModuleList(ResAdapter(width, rank, zero) for _ in blocks)
        self.vertical = nn.ModuleList(ResAdapter(width, rank, zero) for _ in blocks)
        if mix == "learned":
            self.g = nn.Parameter(torch.zeros(len(blocks)))

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [..., d], the output of the last block -> x^b_L [..., d]."""
        kind = next(self.parameters()).dtype
        heard = [hear(self, asked(block))[self.states].to(kind) for block in self.blocks]
        bypass, outputs = heard[0], [*heard[1:], y.detach().to(kind)]
        for i, state in enumerate(outputs):
            across, along = self.horizontal[i](state), self.vertical[i](bypass)
            if self.mix == "sum":
                bypass = across + along
            else:
                share = torch.sigmoid(self.g[i]) if self.mix == "learned" else 0.5
                bypass = share * across + (1 - share) * along
        return bypass.to(y.dtype)


@dataclass
class ResTuningBypass(Method):
    """A chain of small residual adapters beside the frozen blocks: one reads each block, one the chain so far.

    The chain's end takes the place of the last block's output; whatever follows in the model (a final normalisation, the
    head) reads it. Memory for the backward pass is that of the chain alone. In an encoder-decoder the chain runs beside the
    decoder. ``mix="sum"`` is the re-implementation in swift, without λ: each adapter keeps its input, so that states may grow
    twofold per block.
    """

    name = "res-tuning-bypass"
    route = "add modules"
    paper = "Jiang et al., Res-Tuning: Unbinding Tuner from Backbone, NeurIPS 2023, arXiv:2310.19859"
    trains = "two small residual adapters beside each block"
    inference = "two small networks more per block, beside the trunk"
    identity_at_start = False
    rate = 1e-3

    rank: int = 32
    mix: str = "learned"
    zero: bool = False
    where: str = "block"

    def check(self) -> None:
        """Ranks are positive, the mixture is known."""
        need(self.rank >= 1, self, "rank", "at least 1")
        need(self.mix in ("learned", "half", "sum"), self, "mix", "'learned', 'half' or 'sum'")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """A tap at every block of the last stack, and the chain at the end of the last block.

        Raises:
            NoSuchSite, Unfit: see ``stacks``.
        """
        stack = stacks(at, self.where)[-1]
        for block in stack.blocks:
            at.put(block, SideTap, port="call")
        at.put(stack.blocks[-1], Bypass, blocks=[block.path for block in stack.blocks], width=stack.width, rank=self.rank,
               mix=self.mix, zero=self.zero)

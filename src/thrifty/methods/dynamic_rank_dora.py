"""DoRA: Enhancing Parameter-Efficient Fine-Tuning with Dynamic Rank Distribution (Mao, Huang, Guan, Bao, Mo, Xu; ACL 2024,
arXiv:2405.17357). Not the weight-decomposed DoRA of Liu et al., which is ``dora``."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import Method, Site, need
from ..core.errors import ThriftyError
from ..core.state import whole
from .branches.components import Components, components, compress, prune, silence

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class DynamicRankDoRA(Method):
    """Updates s B diag(c) A with more components than wanted, r0 = ceil(growth rank), pruned to ``rank`` each on average.

        s = alpha / r0;   S_i <- beta S_i + (1 - beta) |c_i b_i a_i|_F / (|B diag(c) A|_F + 1e-8),   from S = 0
        R = sum over layers and i of Var(a_i) + Var(b_i), over (layers 2 r0), times ``balance``, added to the loss

    After the first ``initial`` share of T steps, c_i <- 0 where S_i is among the lowest (r0 - rank) / r0 (t' / T')³ of all,
    with t' counted from there and T' = T (1 - initial - final); every ``every`` steps, and at T'. In between c_i may grow
    again. From T' on what is pruned stays so, and R is dropped. ``finish`` leaves plain low-rank edits of the ranks found.
    """

    name = "dynamic-rank-dora"
    aliases = ("dynamic_rank_dora", "dora-mao")
    route = "inject parameters"
    paper = "Mao et al., DoRA: Enhancing PEFT with Dynamic Rank Distribution, ACL 2024, arXiv:2405.17357"
    trains = "A [1.5 rank, in], B [out, 1.5 rank] and a factor per rank beside each weight, pruned to `rank` ranks on average"
    mergeable = True
    inference = "none once merged"
    Edit = Components
    rate = 2e-4

    rank: int = 8
    growth: float = 1.5
    alpha: float = 8.0
    dropout: float = 0.1
    balance: float = 0.1
    beta: float = 0.9
    initial: float = 0.15
    final: float = 0.5
    every: int = 100
    where: str = "attn.?|mlp.*"

    def check(self) -> None:
        """There are at least as many components as are wanted, and a time to prune them in."""
        need(self.rank >= 1, self, "rank", "at least 1")
        need(self.growth >= 1, self, "growth", "at least 1")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")
        need(self.balance >= 0, self, "balance", "at least 0")
        need(0 <= self.beta < 1, self, "beta", "in [0, 1)")
        need(0 <= self.initial < 1, self, "initial", "in [0, 1)")
        need(0 <= self.final < 1 - self.initial, self, "final", f"in [0, {1 - self.initial:g}), what `initial` leaves")
        need(self.every >= 1, self, "every", "at least 1")

    @property
    def start(self) -> int:
        """r0, the rank of every layer at the start."""
        return math.ceil(self.growth * self.rank)

    def numbers(self, site: Site) -> dict[str, Any]:
        """The scale is that of the rank at the start, however many components are left."""
        return {"rank": self.start, "scale": self.alpha / self.start, "dropout": self.dropout}

    def penalty(self, at: Attachment) -> Tensor | float:
        """``balance`` R, which keeps single entries from deciding what a component is worth; nothing once pruning is over."""
        edits = components(at).values()
        if not edits or self.settled(at):
            return 0.0
        terms = [_variance(t) for edit in edits for t in (whole(edit.A).flatten(1), whole(edit.B).T)]
        return self.balance * torch.stack([t.to(terms[0].device) for t in terms]).sum() / (len(terms) * self.start)

    def step(self, at: Attachment, step: int, total: int) -> None:
        """Score the components as this step left them, and prune.

        Raises:
            ThriftyError: the first steps were not seen.
        """
        edits = components(at)
        if step == 1:
            at.memory.clear()
        elif not at.memory and edits:
            raise ThriftyError(f"{self.name}: nothing is known of the steps before {step}: call step(at, number, total) from "
                               "the first on, and keep at.memory where the training is interrupted")
        if not edits:
            return
        if self.settled(at):
            silence(edits, {name.removesuffix(":gone"): mask for name, mask in at.memory.items() if name.endswith(":gone")})
            return
        # int() rounds towards zero, in the authors' code too: the step before the start may count as the start
        now, end = int(step - total * self.initial), self._end(total)
        scores = {key: self._score(at, key, edit) for key, edit in edits.items()}
        if now >= 0 and (now % self.every == 0 or now == end):
            gone = prune(edits, scores, self.count(now, end, sum(len(edit.c) for edit in edits.values())))
            if now == end:
                at.memory |= {f"{key}:gone": mask for key, mask in gone.items()}
        at.memory["settled"] = torch.tensor(now == end)

    def settled(self, at: Attachment) -> bool:
        """After the last pruning the ranks stand."""
        return "settled" in at.memory and bool(at.memory["settled"])

    def finish(self, at: Attachment) -> None:
        """Drop what was pruned."""
        compress(at, self.rank * len(components(at)))

    def count(self, now: int, end: int, every: int) -> int:
        """How many of ``every`` component to prune at t' = ``now`` of T' = ``end``: exact, rounded down, but at least one."""
        way, whole_way = (now**3, end**3) if end else (1, 1)
        return max(1, every * (self.start - self.rank) * way // (self.start * whole_way))

    def _end(self, total: int) -> int:
        """T', which is never after the last step."""
        return min(int(total * (1 - self.initial - self.final)), int(total - total * self.initial))

    @torch.no_grad()
    def _score(self, at: Attachment, key: str, edit: Components) -> Tensor:
        now = importance(edit)
        known = at.memory.get(f"{key}:S", torch.zeros_like(now)).to(now)
        at.memory[f"{key}:S"] = self.beta * known + (1 - self.beta) * now
        return at.memory[f"{key}:S"]


def importance(edit: Components) -> Tensor:
    """The share of each component in the norm of the update, [rank], without making any matrix of the layer's size.

    |c_i b_i a_i|_F = |c_i| |b_i| |a_i|, and |B diag(c) A|²_F = c' ((B' B) * (A A')) c.
    """
    A, B, c = whole(edit.A).flatten(1), whole(edit.B), whole(edit.c)
    both = torch.einsum("i,ij,ij,j->", c, B.T @ B, A @ A.T, c).clamp_min(0).sqrt()
    return c.abs() * B.norm(dim=0) * A.norm(dim=1) / (both + 1e-8)


def _variance(rows: Tensor) -> Tensor:
    """The unbiased variances of the ``rows`` [rank, width], summed; a row of one entry has none."""
    return rows.var(1).sum() if rows.shape[1] > 1 else rows.sum() * 0

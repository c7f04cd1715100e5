"""AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning (Zhang, Chen, Bukharin, Karampatziakis, He, Cheng,
Chen, Zhao; ICLR 2023, arXiv:2303.10512)."""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import Method, Site, need
from ..core.errors import NoSuchSetting, ThriftyError
from ..core.state import whole
from .branches.components import Components, components, compress, prune

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class AdaLoRA(Method):
    """Updates s B diag(c) A near a singular value decomposition, whose least important components are pruned in training.

        s = alpha / (rank + 1e-5);   loss + gamma mean over all A, B of |A A' - I|_F, |B' B - I|_F (squared in the paper's text)
        w in A, B, c:  I = |w dL/dw|;   I~ <- beta1 I~ + (1 - beta1) I;   U~ <- beta2 U~ + (1 - beta2) |I - I~|
        S_i = score(c_i) + mean_j score(A_ij) + mean_j score(B_ji),   score = I~ U~

    All layers together start with b0 = ``rank`` components each and end with bT = ``target`` each on average. In T steps:

        t <= t_i            b0
        t_i < t <= T - t_f  bT + (b0 - bT) (1 - (t - t_i) / (T - t_f - t_i))³, every ``every`` steps
        T - t_f < t         bT at every step, scores as they were

    and c_i <- 0 where S_i is among the lowest; until the last phase such a c_i may grow again. ``initial`` is t_i and ``final``
    t_f: shares of the training below 1, numbers of steps from 1 on (CoLA: 800 and 3500 of 6700; MNLI: 8000 and 50000 of 85900,
    ``every`` 100). ``finish`` leaves plain low-rank edits of the ranks that were found.
    """

    name = "adalora"
    route = "inject parameters"
    paper = "Zhang et al., Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning, ICLR 2023, arXiv:2303.10512"
    trains = "A [rank, in], B [out, rank] and a factor per rank beside each weight, pruned to `target` ranks on average"
    mergeable = True
    inference = "none once merged"
    Edit = Components
    rate = 8e-4

    rank: int = 3
    target: int = 1
    alpha: float = 32.0
    dropout: float = 0.0
    gamma: float = 0.1
    squared: bool = False
    beta1: float = 0.85
    beta2: float = 0.85
    initial: float = 0.12
    final: float = 0.52
    every: int = 10
    where: str = "attn.?|mlp.*"

    def check(self) -> None:
        """Budgets do not grow, averages are averages, and there is a last phase in which the ranks stand."""
        need(self.target >= 1, self, "target", "at least 1")
        need(self.target <= self.rank, self, "rank", f"at least the target, {self.target}")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")
        need(self.gamma >= 0, self, "gamma", "at least 0")
        need(0 <= self.beta1 < 1, self, "beta1", "in [0, 1)")
        need(0 <= self.beta2 < 1, self, "beta2", "in [0, 1)")
        need(self.initial >= 0, self, "initial", "at least 0")
        need(self.final > 0, self, "final", "above 0: the ranks must stand for at least one step")
        need(self.every >= 1, self, "every", "at least 1")

    def numbers(self, site: Site) -> dict[str, Any]:
        """The scale is that of the rank at the start, however many components are left."""
        return {"rank": self.rank, "scale": self.alpha / (self.rank + 1e-5), "dropout": self.dropout, "std": 0.02}

    def penalty(self, at: Attachment) -> Tensor | float:
        """How far the rows of A and the columns of B are from orthonormal, on average."""
        gaps = [_gap(m, self.squared) for edit in components(at).values() for m in (whole(edit.A).flatten(1), whole(edit.B).T)]
        return self.gamma * torch.stack([gap.to(gaps[0].device) for gap in gaps]).mean() if gaps else 0.0

    def step(self, at: Attachment, step: int, total: int) -> None:
        """Score the components with the gradients of this step, and prune those beyond the budget.

        Raises:
            NoSuchSetting: ``initial`` and ``final`` are longer than the training. ThriftyError: the first steps were not seen.
        """
        first, last = self.phases(total)
        edits = components(at)
        if step == 1:
            at.memory.clear()
        if not edits:
            return
        if step < last or step == 1:
            self._observe(at, edits)
        if step > last or step > first and step % self.every == 0:
            every = sum(len(edit.c) for edit in edits.values())
            prune(edits, scores(at, edits), every - self.budget(step, total, every, self.target * len(edits)))
        at.memory["settled"] = torch.tensor(step > last)

    def settled(self, at: Attachment) -> bool:
        """In the last phase the ranks stand."""
        return "settled" in at.memory and bool(at.memory["settled"])

    def finish(self, at: Attachment) -> None:
        """Drop what was pruned."""
        compress(at, self.target * len(components(at)))

    def phases(self, total: int) -> tuple[int, int]:
        """t_i and T - t_f: the last steps before pruning begins, and before the ranks stand.

        Raises:
            NoSuchSetting: together they are longer than the training.
        """
        first = int(self.initial if self.initial >= 1 else self.initial * total)
        last = total - math.ceil(self.final if self.final >= 1 else self.final * total)
        if first > last:
            raise NoSuchSetting(f"adalora: initial = {self.initial:g} and final = {self.final:g} are longer than a training of "
                                f"{total} steps: train longer, or give them as shares below 1")
        return first, last

    def budget(self, step: int, total: int, most: int, least: int) -> int:
        """How many components may be left after ``step``, from ``most`` = b0 down to ``least`` = bT; exact, rounded down."""
        first, last = self.phases(total)
        if step <= first:
            return most
        return least if step > last else least + (most - least) * (last - step) ** 3 // (last - first) ** 3

    @torch.no_grad()
    def _observe(self, at: Attachment, edits: Mapping[str, Components]) -> None:
        for key, edit in edits.items():
            for name, p in edit.named_parameters():
                now = whole(p).mul(0.0 if p.grad is None else whole(p.grad)).abs()
                mean, gap = (at.memory.get(f"{key}:{name}:{of}", torch.zeros_like(now)).to(now) for of in OF)
                mean = self.beta1 * mean + (1 - self.beta1) * now
                gap = self.beta2 * gap + (1 - self.beta2) * (now - mean).abs()
                at.memory |= {f"{key}:{name}:{OF[0]}": mean, f"{key}:{name}:{OF[1]}": gap}


OF = ("sensitivity", "uncertainty")


def scores(at: Attachment, edits: Mapping[str, Components]) -> dict[str, Tensor]:
    """S [rank] of the components of each edit.

    Raises:
        ThriftyError: nothing was observed.
    """
    found = {}
    for key in edits:
        try:
            A, B, c = (at.memory[f"{key}:{name}:{OF[0]}"] * at.memory[f"{key}:{name}:{OF[1]}"] for name in "ABc")
        except KeyError:
            raise ThriftyError(f"adalora: nothing is known of the components at {key!r}: call step(at, number, total) after "
                               "every optimiser step from the first on, and keep at.memory where the training is interrupted"
                               ) from None
        found[key] = c + A.flatten(1).mean(1) + B.mean(0)
    return found


def _gap(m: Tensor, squared: bool) -> Tensor:
    """|m m' - I|_F, m [rank, width]."""
    rest = m @ m.T - torch.eye(len(m), dtype=m.dtype, device=m.device)
    return rest.square().sum() if squared else rest.norm()

"""Diff pruning: Parameter-Efficient Transfer Learning with Diff Pruning (Guo, Rush, Kim; ACL 2021, arXiv:2012.07463)."""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import Method, need
from ..core.errors import Unfit
from ..core.ledger import unfrozen
from ..core.roles import HEADS
from ..core.site import at_path
from .sparse.diff_gates import Again, Gates, gates_of

if TYPE_CHECKING:
    from ..core import Attachment

@dataclass
class DiffPruning(Method):
    """A sparse change of all weights but the head's: theta = theta_0 + z w, with gates z that learn to close.

    The loss gets ``weight`` times the expected number of changed entries. With ``structured`` each parameter tensor has a gate
    over all of its entries; ``l0="product"`` (the paper) multiplies the probabilities of the two, "sum" (the authors' code)
    adds up both kinds of gates apart.

    When the share ``fix`` of the training is done, the ``sparsity`` largest entries of |theta - theta_0|, as a share of all
    weights, stay, and from there w trains for them alone, at the rate ``mask_rate``. The change of a head that trains in full
    counts among the entries, but stays. With ``fix=1`` the rest of the entries is thrown away at the end instead, and those
    that stay keep their last sample. Either way the file holds the entries that stay, and where they are.

    Training takes the memory of two more models, with what the optimiser keeps for both. The gates learn at ``gate_rate``,
    whatever the schedule. ``start``, ``low``, ``high`` and ``temperature`` are the gates' numbers.
    """

    name = "diff-pruning"
    route = "few weights"
    paper = "Guo et al., Parameter-Efficient Transfer Learning with Diff Pruning, ACL 2021, arXiv:2012.07463"
    trains = "a sparse change of all weights"
    inference = "none"
    intermittent = True  # a task need not use every weight
    rate = 1e-5

    sparsity: float = 0.005
    structured: bool = True
    l0: str = "product"
    weight: float = 1.25e-7
    fix: float = 0.5
    gate_rate: float = 0.1
    mask_rate: float = 5e-5
    start: float = 5.0
    low: float = -1.5
    high: float = 1.5
    temperature: float = 1.0

    def check(self) -> None:
        """Shares lie between 0 and 1, the gates can close and open, rates are positive."""
        need(0 < self.sparsity < 1, self, "sparsity", "between 0 and 1: the share of all weights that may change")
        need(0 < self.fix <= 1, self, "fix", "above 0, and 1 at most")
        need(self.l0 in ("product", "sum"), self, "l0", "'product' or 'sum'")
        need(self.weight >= 0, self, "weight", "at least 0")
        need(self.gate_rate > 0, self, "gate_rate", "positive")
        need(self.mask_rate > 0, self, "mask_rate", "positive")
        need(self.low < 0, self, "low", "below 0, or no gate could close")
        need(self.high > 1, self, "high", "above 1, or no gate could open")
        need(self.temperature > 0, self, "temperature", "positive")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Claim every parameter but the head's, and put the gates where the model is entered.

        Raises:
            Unfit: there is no such parameter, or weights are quantised.
        """
        words = getattr(at.model, "get_output_embeddings", lambda: None)()  # a head that came with the weights
        known = {id(p) for p in words.parameters()} if words is not None else set()
        names = [n for n in unfrozen(at.model) if n not in at.base
                 and (id(at.model.get_parameter(n)) in known or not HEADS.search(n))]
        if not names:
            raise Unfit(f"{type(at.model).__name__} has no weights outside its head to change")
        for name in names:
            at.train(name, wildcard=True)
        at.put(at.sites("model")[0], Gates, names=names, structured=self.structured, start=self.start, low=self.low,
               high=self.high, temperature=self.temperature)
        if getattr(getattr(at.model, "config", None), "is_encoder_decoder", False):
            encoder: Any = at.model.get_encoder()  # type: ignore[operator]
            path = next(path for path, module in at.model.named_modules() if module is encoder)
            at.put(at_path(at.model, path, "model", None, -1, "", at.seen), Again)

    def penalty(self, at: Attachment) -> Tensor | float:
        """weight · the expected number of entries that change; nothing once the entries are fixed."""
        gates = gates_of(at)
        return 0.0 if gates is None or not self.weight else self.weight * gates.expected(self.l0 == "product")

    def step(self, at: Attachment, step: int, total: int) -> None:
        """Fix the entries when it is time."""
        if self.fix < 1 and step >= self.fix * total and (gates := gates_of(at)) is not None:
            project(at, gates, self.sparsity, raw=True)

    def settled(self, at: Attachment) -> bool:
        """Once the entries are fixed, unless that is left to the end."""
        return self.fix == 1 or gates_of(at) is None

    def resume(self, at: Attachment, state: Mapping[str, Tensor]) -> None:
        """Fix the entries, if they were when ``state`` was written; which they are, the state says."""
        if (gates := gates_of(at)) is not None and any(name.startswith("entries:") for name in state):
            held = {name for name in gates.names if f"entries:{name}" in state}
            fix(at, gates, {n: torch.full_like(at.base[n], n in held, dtype=torch.bool) for n in gates.names})

    def finish(self, at: Attachment) -> None:
        """Throw the other entries away, where that was left to the end, or the training ended before it was time."""
        if (gates := gates_of(at)) is not None:
            project(at, gates, self.sparsity, raw=False)

    def groups(self, at: Attachment, rate: float, decay: float) -> list[dict[str, Any]]:
        """w and a head at ``rate``, the gates at theirs, and the weights at ``mask_rate`` for when their entries are fixed.

        Until then the weights get no gradient of their own, and so no step. Decay would pull w towards the base; the weights
        themselves must not decay, as those that do not train would go along.
        """
        gates = gates_of(at)
        mine = set(gates.names if gates is not None else at.masks)
        every = list(at.named_parameters())
        weights = [p for n, p in every if n.removeprefix("base:") in mine]
        heads = [p for n, p in every if n.startswith("base:") and n.removeprefix("base:") not in mine]
        found = [{"params": [p for p in heads if p.dim() > 1], "lr": rate, "weight_decay": decay},
                 {"params": [p for p in heads if p.dim() <= 1], "lr": rate, "weight_decay": 0.0},
                 {"params": weights, "lr": self.mask_rate, "weight_decay": 0.0}]
        if gates is not None:
            alphas = [*gates.alpha, *([gates.group] if gates.group is not None else [])]
            found += [{"params": list(gates.w), "lr": rate, "weight_decay": decay},
                      {"params": alphas, "lr": self.gate_rate, "weight_decay": 0.0, "constant": True}]
        return [group for group in found if group["params"]]


def budget(count: int, sparsity: float) -> int:
    """How many of ``count`` entries may stay."""
    return math.floor(count * sparsity)


@torch.no_grad()
def project(at: Attachment, gates: Gates, sparsity: float, raw: bool) -> None:
    """Keep the ``sparsity`` largest entries of |theta - theta_0| of all weights, and take the gates away.

    What stays is w if ``raw``, else the sample of z w by which it was ranked.

    Raises:
        Unfit: the sparsity leaves no entry, or nothing has changed.
    """
    mode = gates.training
    gates.train()  # so that gates are sampled
    sampled = [gates.change(i) for i in range(len(gates.names))]
    gates.train(mode)
    others = [p - at.base[n] for n, p in at.model.named_parameters() if n in at.base and n not in gates.names]
    sizes = torch.cat([change.abs().flatten() for change in (*sampled, *others)])
    most = min(budget(len(sizes), sparsity), int((sizes > 0).sum()))
    if most == 0:
        raise Unfit(f"a sparsity of {sparsity} leaves none of {len(sizes)} weights, of which {int((sizes > 0).sum())} have changed")
    chosen = torch.zeros_like(sizes, dtype=torch.bool)
    chosen[sizes.topk(most).indices] = True
    masks = dict(zip(gates.names, chosen.split([change.numel() for change in (*sampled, *others)]), strict=False))
    kept = list(gates.w) if raw else sampled
    for name, value in zip(gates.names, kept, strict=True):
        parameter = at.model.get_parameter(name)
        parameter.copy_(at.base[name].to(value.dtype) + value)
    fix(at, gates, {name: mask.view(at.base[name].shape) for name, mask in masks.items()})


def fix(at: Attachment, gates: Gates, masks: dict[str, Tensor]) -> None:
    """Take the gates away; from now on the entries of ``masks`` train in place and the others are what they were."""
    for handle in gates.context.taps.pop("arrivals", ()):
        handle.remove()
    for key in [key for key, edit in at.edits.items() if isinstance(edit, (Gates, Again))]:
        at.take_away(key)
    for name, mask in masks.items():
        at.restrict(name, mask)

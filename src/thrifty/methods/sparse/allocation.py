"""Which tensors are tuned as a whole and which entries of the others, for a number of parameters: the allocation of

SPT: Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning (He, Cai, Zhang, Tao, Zhuang; ICCV 2023, arXiv:2303.08566).
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.errors import ThriftyError, Unfit

SWEEP = 79  # numbers of selected entries that are tried, each a step above the last


@dataclass(frozen=True)
class Tunable:
    """A tensor that is tuned as a whole, for ``cost`` parameters, if ``factor`` times its selected entries reach that cost."""

    cost: int
    factor: float


@dataclass(frozen=True)
class Allocation:
    """What trains: the parameters in all, the tensors tuned as a whole, and of the others the positions that were selected."""

    total: int
    whole: list[bool]
    entries: list[Tensor]


def allocate(sensitivity: list[Tensor], tunables: list[Tunable], budget: int, grid: int, always: int = 0) -> Allocation:
    """The allocation whose total is closest to ``budget``, of those for the ``grid``, 2 ``grid``, ... most sensitive entries.

    All tensors are ranked together. ``always`` is what trains in any case. Of two totals as close, that for more entries wins.

    Raises:
        ThriftyError: the sensitivities are zero everywhere, or not finite.
        Unfit: training nothing at all would be closer to the budget than any of these totals.
    """
    flat = torch.cat([s.flatten() for s in sensitivity])
    if not bool(flat.isfinite().all()) or not bool(flat.any()):
        raise ThriftyError("the gradients by which weights are ranked are " + ("not finite: compute in float32" if bool(flat.any())
                           else "zero everywhere: the loss does not depend on them (a head of zeros passes none on)"))
    ranked = rank(flat, min(SWEEP * grid, len(flat)))
    ends = torch.tensor([s.numel() for s in sensitivity]).cumsum(0)
    owner = torch.searchsorted(ends, ranked.cpu(), right=True)
    best, chosen, least = 0, 0, 0
    for taken in (min(i * grid, len(flat)) for i in range(1, SWEEP + 1)):
        counts = torch.bincount(owner[:taken], minlength=len(ends)).tolist()
        total = always + sum(t.cost if reaches(n, t) else n for n, t in zip(counts, tunables, strict=True))
        least = least or total
        if abs(total - budget) <= abs(best - budget):
            best, chosen = total, taken
        if taken == len(flat):
            break
    if not chosen:
        raise Unfit(f"no allocation comes near a budget of {budget:,} parameters, the smallest takes {least:,}: set a larger "
                    "budget, or a finer grid")
    return _lay_out(ranked[:chosen].cpu(), owner[:chosen], ends, tunables, best)


def reaches(selected: int, tensor: Tunable) -> bool:
    """Whether a tensor with so many selected entries is tuned as a whole."""
    return selected > 0 and selected * tensor.factor >= tensor.cost


def rank(flat: Tensor, most: int) -> Tensor:
    """Positions of the ``most`` largest entries of ``flat``, the largest first; of equal ones the first."""
    edge = flat.topk(most).values[-1]
    above, level = (flat > edge).nonzero().flatten(), (flat == edge).nonzero().flatten()
    found = torch.cat([above, level[: most - len(above)]]).sort().values
    return found[flat[found].sort(descending=True, stable=True).indices]


def _lay_out(chosen: Tensor, owner: Tensor, ends: Tensor, tunables: list[Tunable], total: int) -> Allocation:
    starts = [0, *ends.tolist()[:-1]]
    whole, entries = [], []
    for i, tensor in enumerate(tunables):
        own = chosen[owner == i].sort().values - starts[i]
        whole.append(reaches(len(own), tensor))
        entries.append(own[:0] if whole[-1] else own)
    return Allocation(total, whole, entries)

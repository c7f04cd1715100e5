"""Folding edits into the weights they act on, with the rounding that costs measured, and taking them out again."""
from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from . import weight as weights
from .edit import Edit
from .errors import CannotMerge
from .hooks import edits_on
from .ledger import canonical, merged

if TYPE_CHECKING:
    from .attachment import Attachment

Replaced = list[tuple[str, nn.Module]]
EXACT = 1 << 26  # weights up to this many entries are folded in float64, larger ones in float32


@dataclass
class MergeReport:
    """Per site: the norm of what rounding lost, over the norm of what the edits wanted to change."""

    errors: dict[str, float] = field(default_factory=dict)
    dequantised: list[str] = field(default_factory=list)

    @property
    def worst(self) -> float:
        """The largest of the errors; 0 where nothing was merged."""
        return max(self.errors.values(), default=0.0)

    def __str__(self) -> str:
        text = f"merged {len(self.errors)} sites; worst rounding error {self.worst:.2e} of the adapter's effect"
        return text + (f"; {len(self.dequantised)} quantised layers became dense" if self.dequantised else "")


def fold_all(at: Attachment, limit: float, quantised: str,
             again: bool = False) -> tuple[MergeReport, dict[str, Tensor], Replaced]:
    """Write every edit of ``at`` into its weight; ``again`` when it was there before and was only lifted.

    Returns the report, the originals of what was overwritten (by parameter name) and the quantised modules that were replaced.

    Raises:
        CannotMerge: before anything is touched, naming the edit or site and why.
    """
    plans = _group(at)
    if not again:
        _refuse_neighbours(at, plans)
    report, new = MergeReport(), {}
    for path, edits in plans.items():
        module = at.model.get_submodule(path)
        if weights.is_quantised(module) and quantised != "dequantise":
            raise CannotMerge(f"{path!r} is quantised ({type(module).__name__}): its grid would swallow the edit. Merge with "
                              "quantised='dequantise' to replace the layer by a dense one, or into the full-precision base")
        old_weight, old_bias = _whole(module, path)
        wide = torch.float64 if old_weight.numel() <= EXACT or old_weight.dtype == torch.float64 else torch.float32
        target_weight, target_bias = _folded(edits, old_weight.to(wide), None if old_bias is None else old_bias.to(wide))
        stored = torch.float32 if weights.is_quantised(module) else old_weight.dtype
        report.errors[path] = _loss(old_weight.to(wide), target_weight, stored)
        if report.errors[path] > limit:
            raise CannotMerge(f"merging {path!r} in {old_weight.dtype} would lose {report.errors[path]:.0%} of the adapter's "
                              f"effect (limit {limit:.0%}): load the base in float32 to merge, or serve it unmerged")
        moved = target_bias is not None and old_bias is not None and not torch.equal(target_bias.to(old_bias), old_bias)
        new[path] = target_weight, target_bias, moved
    backup: dict[str, Tensor] = {}
    replaced: Replaced = []
    for path, (weight, bias, moved) in new.items():
        module = at.model.get_submodule(path)
        if weights.is_quantised(module):
            replaced.append((path, module))
            report.dequantised.append(path)
            _replace(at.model, path, _dense(module, weight, bias))
            continue
        backup = {name: p.detach().clone() for name, p in _behind(at.model, path, moved).items()} | backup
        _write(module, weight, bias if moved else None)
    return report, backup, replaced


def touched(at: Attachment) -> set[str]:
    """Names of the base parameters that a merged ``at`` overwrote."""
    return {*at.backup, *(f"{path}.weight" for path, _ in at.replaced)}


@contextlib.contextmanager
def lifted(at: Attachment) -> Iterator[None]:
    """Lifts off what other attachments merged above the tensors that ``at`` is about to put back, and merges it again."""
    merges = merged(at.model)
    below = merges[: merges.index(at)] if at in merges else []
    above = [a for a in merges if a is not at and (touched(a) & at.base.keys() or a not in below and touched(a) & touched(at))]
    for other in reversed(above):
        restore(at.model, other.backup, other.replaced)
    try:
        yield
    finally:
        for other in above:
            _, other.backup, other.replaced = fold_all(other, math.inf, "dequantise", again=True)


@torch.no_grad()
def restore(model: nn.Module, backup: dict[str, Tensor], replaced: Replaced) -> None:
    """Put back what ``fold_all`` overwrote and replaced, bit for bit."""
    for path, module in replaced:
        _replace(model, path, module)
    for name, value in backup.items():
        model.get_parameter(name).copy_(value)


def _group(at: Attachment) -> dict[str, list[Edit]]:
    grouped: dict[str, list[Edit]] = {}
    for row, edit in zip(at.plan, at.edits.values(), strict=True):
        for path in edit.folds_into() if edit.on else ():
            if edit.port in ("attention", "call", "around") or getattr(at.model.get_submodule(path), "weight", None) is None:
                edit.delta(torch.empty(0))  # says by name that it cannot
                raise CannotMerge(f"{type(edit).__name__} at {row.path!r} acts on {edit.port}, not on a weight")
            grouped.setdefault(path, []).append(edit)
    # y = (W + what stands beside it) f2(f1(x)): what changes x folds in last, and f2 before f1
    return {path: [e for e in edits if not _before(e, path)] + [e for e in reversed(edits) if _before(e, path)]
            for path, edits in grouped.items()}


def _before(edit: Edit, path: str) -> bool:
    """Whether ``edit`` changes what the module at ``path`` reads."""
    return edit.port == "input" or edit.site.path != path


def _refuse_neighbours(at: Attachment, plans: dict[str, list[Edit]]) -> None:
    for path in plans:
        places = {path, *(own.site.path for own in plans[path])}
        held = [e for place in places for e in edits_on(at.model.get_submodule(place)).values()]
        others = [e for e in held if isinstance(e, Edit) and e.on and all(e is not own for own in plans[path])]
        if others and not all(e.additive for e in (*others, *plans[path])):
            raise CannotMerge(f"{path!r} also holds {type(others[0]).__name__} of another attachment, and the two do not "
                              "commute: merge or disable that one first")


@torch.no_grad()
def _folded(edits: list[Edit], weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    for edit in edits:
        part = edit.part
        if part is None:
            weight, bias = edit.fold(weight, bias)
        else:
            rows, own = edit.fold(part.take(weight, 0), None if bias is None else part.take(bias))
            weight = part.put(weight, rows, 0)
            bias = part.put(bias, own) if bias is not None and own is not None else bias
    return weight, bias


def _loss(old: Tensor, target: Tensor, stored: torch.dtype) -> float:
    wanted = target - old
    size = wanted.double().norm()
    if not torch.isfinite(size):
        raise CannotMerge("the adapter's change of the weight is not finite")
    return float((target.to(stored).to(old.dtype) - target).double().norm() / size) if size > 0 else 0.0


def _whole(module: nn.Module, path: str) -> tuple[Tensor, Tensor | None]:
    bias = getattr(module, "bias", None)
    return weights.read(module, path), bias() if callable(bias) else bias


def _behind(model: nn.Module, path: str, moved: bool) -> dict[str, nn.Parameter]:
    """The parameters that a merge at ``path`` writes to: the module's own, or its owner's if it stands for rows of them."""
    module = model.get_submodule(path)
    if next(module.parameters(recurse=False), None) is None:
        path = path.rpartition(".")[0]
        module = model.get_submodule(path)
    found = {f"{path}.{n}".lstrip("."): p for n, p in module.named_parameters(recurse=False) if moved or not n.endswith("bias")}
    return {canonical(model, name): p for name, p in found.items()}


@torch.no_grad()
def _write(module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    if not weights.writable(module):
        raise CannotMerge(f"{type(module).__name__} holds its weight sharded: gather it before merging")
    weights.read(module, "").copy_(weight)
    if bias is not None:
        cast("Tensor", module.bias).copy_(bias)


def _dense(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device, dtype=torch.float32)
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias)
    return made.requires_grad_(False).train(module.training)


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    holder, _, short = path.rpartition(".")
    setattr(model.get_submodule(holder), short, module)

"""Several adapters as one: a weighted sum, exact or refused."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..artifact.load import load
from ..core import Attachment, Edit
from ..core.attaching import finish
from ..core.errors import CannotCombine, ThriftyError


@dataclass
class Parts:
    """What the adapters hold: edits by key, and values of base parameters by name, with their weights."""

    edits: dict[str, list[tuple[Edit, float]]] = field(default_factory=dict)
    base: dict[str, list[tuple[Tensor, float]]] = field(default_factory=dict)


def combine(model: nn.Module, adapters: Sequence[tuple[str | Path, float]], name: str = "combined") -> Attachment:
    """One attachment whose effect is the weighted sum of saved ``adapters``, given as (folder, weight).

    One adapter at weight 1 is itself, whatever its method. Low-rank edits sum exactly (the ranks add up), and so do the
    changes that the adapters make to base parameters, measured from the values that ``model`` has. No other edit has an
    exact sum, and none is approximated.

    Raises:
        CannotCombine: naming the edit or tensor that has no exact sum.
        BrokenArtifact, WrongBase: from loading.
    """
    if not adapters:
        raise ThriftyError("combine needs at least one (folder, weight)")
    for folder, weight in adapters:
        if not math.isfinite(weight):
            raise CannotCombine(f"the weight of {folder} is {weight}")
    if len(adapters) == 1 and adapters[0][1] == 1:
        return load(model, adapters[0][0], name)
    parts = Parts()
    for i, (folder, weight) in enumerate(adapters):
        _read(model, folder, weight, f"{name}-part{i}", parts)
    at = Attachment(model, name, tied="leave")
    try:
        with torch.random.fork_rng(devices=[]):
            state = _sum_edits(at, parts) | _sum_base(at, parts)
        at.load_state(state)
        finish(at, None, False)
    except BaseException:
        at.detach()
        raise
    at.start = {}
    return at


def _read(model: nn.Module, folder: str | Path, weight: float, name: str, parts: Parts) -> None:
    part = load(model, folder, name, check=False)
    try:
        if part.masks or part.context.shared is not None:
            raise CannotCombine(f"{folder}: adapters with sparse masks or a shared module have no exact sum here")
        for key, edit in part.edits.items():
            if edit.on:
                parts.edits.setdefault(key, []).append((edit, weight))
        parameters = dict(model.named_parameters())
        for base in part.base:
            if base not in parameters:
                raise CannotCombine(f"{folder}: {base!r} is a running statistic, and the statistics of a sum are not the sum")
            parts.base.setdefault(base, []).append((parameters[base].detach().clone(), weight))
    finally:
        part.detach()


def _sum_edits(at: Attachment, parts: Parts) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for key, edits in parts.edits.items():
        kind = type(edits[0][0])
        numbers, tensors = kind.combine([e for e, _ in edits], [w for _, w in edits])
        at.put(edits[0][0].site, kind, **numbers)
        if at.plan[-1].key != key:
            raise CannotCombine(f"{key!r} is the second edit of its kind at its place, and the first is off or elsewhere")
        state |= {f"edit:{key}:{n}": t for n, t in tensors.items()}
    return state


def _sum_base(at: Attachment, parts: Parts) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, values in parts.base.items():
        at.train(name)
        start = at.base[name].double()
        state[f"base:{name}"] = start + sum(((w * (value.double() - start)) for value, w in values), torch.zeros_like(start))
    return state

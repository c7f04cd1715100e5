"""Several adapters as one: a weighted sum, exact or refused."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .artifact import load
from .core import Attachment, Edit
from .core.attaching import finish
from .core.errors import CannotCombine, ThriftyError


def combine(model: nn.Module, adapters: Sequence[tuple[str | Path, float]], name: str = "combined") -> Attachment:
    """One attachment whose effect is the weighted sum of saved ``adapters``, given as (folder, weight).

    One adapter at weight 1 is itself, whatever its method. Low-rank edits sum exactly (the ranks add up), and so do base
    parameters that train in place. No other edit has an exact sum, and none is approximated.

    Raises:
        CannotCombine: naming the edit that has no exact sum.
        BrokenArtifact, WrongBase: from loading.
    """
    if not adapters:
        raise ThriftyError("combine needs at least one (folder, weight)")
    if len(adapters) == 1 and adapters[0][1] == 1:
        return load(model, adapters[0][0], name)
    edits: dict[str, list[tuple[Edit, float]]] = {}
    shifts: dict[str, list[tuple[Tensor, Tensor, float]]] = {}
    for i, (folder, weight) in enumerate(adapters):
        _read(model, folder, weight, f"{name}-part{i}", edits, shifts)
    at = Attachment(model, name, tied="leave")
    try:
        state: dict[str, Tensor] = {}
        for key, parts in edits.items():
            kind = type(parts[0][0])
            if any(type(e) is not kind for e, _ in parts):
                raise CannotCombine(f"{key!r} is a different kind of edit in different adapters")
            numbers, tensors = kind.combine([e for e, _ in parts], [w for _, w in parts])
            at.put(parts[0][0].site, kind, **numbers)
            state |= {f"edit:{at.plan[-1].key}:{n}": t for n, t in tensors.items()}
        for parameter, moved in shifts.items():
            if any(not torch.equal(moved[0][0], original) for original, *_ in moved):
                raise CannotCombine(f"{parameter!r} started from different values in the adapters, so their changes have no "
                                    "common sum")
            at.train(parameter)
            change = sum((w * (value - original) for original, value, w in moved), torch.tensor(0.0))
            state[f"base:{parameter}"] = moved[0][0] + change
        at.load_state(state)
        finish(at, None, False)
    except BaseException:
        at.detach()
        raise
    at.start = {}
    return at


def _read(model: nn.Module, folder: str | Path, weight: float, name: str, edits: dict[str, Any],
          shifts: dict[str, Any]) -> None:
    part = load(model, folder, name, check=False)
    try:
        if part.masks or part.context.shared is not None:
            raise CannotCombine(f"{folder}: adapters with sparse masks or a shared module have no exact sum here")
        for key, edit in part.edits.items():
            edits.setdefault(key, []).append((edit, weight))
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for parameter, original in part.base.items():
            shifts.setdefault(parameter, []).append((original, tensors[parameter].detach().clone(), weight))
    finally:
        part.detach()

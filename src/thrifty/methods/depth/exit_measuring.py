"""What early exits do to a batch: how sure each is, where pictures leave, and how many operations that takes.

For Faster Domain Adaptation Networks (Li, Jing, Su, Lu, Zhu, Shen; IEEE TKDE 34, 2022), see ``early_exit``.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...core.errors import Unfit
from . import exit_budget
from .exits import NEVER, Gather, confidence, exits_of, listening
from .flops import flops

if TYPE_CHECKING:
    from ...core import Attachment

UNREACHED = 2.0  # above every confidence: the exit is asked, and lets nobody leave


def confidences(at: Attachment, batches: Iterable[dict[str, Any]]) -> list[list[float]]:
    """c[k][i]: how confident exit k is of picture i, if nobody leaves; the end of the network is the last exit."""
    found: list[list[float]] = [[] for _ in range(len(exits_of(at)) + 1)]
    measure = exits_of(at)[0].measure
    for batch in batches:
        with torch.no_grad(), listening(at) as heard:
            at.model(**batch)
        for here, (logits, _) in zip(found, heard, strict=True):
            here += confidence(logits, measure).tolist()
    return found


def set_thresholds(at: Attachment, t: Sequence[float]) -> None:
    """Let a picture leave at exit k if its confidence, minus the entropy say, is at least ``t[k]``.

    Infinity lets nobody leave there, minus infinity everybody. One more number, for the end of the network, is ignored.

    Raises:
        Unfit: not as many numbers as exits, or one that is none.
    """
    exits = exits_of(at)
    if len(t) not in (len(exits), len(exits) + 1) or any(math.isnan(one) for one in t):
        raise Unfit(f"thresholds are {len(exits)} numbers, one for each exit before the end, not {list(t)}")
    for edit, least in zip(exits, t, strict=False):
        edit.threshold.fill_(min(max(least, -NEVER), NEVER))


def thresholds(at: Attachment) -> list[float]:
    """The thresholds as they are set; infinity where nobody leaves."""
    return [math.inf if float(edit.threshold) >= NEVER else float(edit.threshold) for edit in exits_of(at)]


def taken(at: Attachment) -> Tensor:
    """Where each picture of the last batch left, [B], from 0; the end of the network is the last exit.

    Raises:
        Unfit: the model has answered to nothing yet.
    """
    gather = next(e for e in at.edits.values() if isinstance(e, Gather))
    if gather.taken is None:
        raise Unfit("no batch has passed the exits yet, in evaluation mode")
    return gather.taken


def exit_flops(at: Attachment, batch: dict[str, Any]) -> list[int]:
    """Operations for one picture that leaves at exit k, those of all before it included, counted while that is run."""
    one = {name: value[:1] for name, value in batch.items()}
    with kept_thresholds(at):
        found = []
        for k in range(len(exits_of(at)) + 1):
            set_thresholds(at, [-math.inf if i == k else UNREACHED for i in range(len(exits_of(at)))])
            found.append(flops(at.model, one))
    return found


@contextmanager
def kept_thresholds(at: Attachment) -> Iterator[None]:
    """Whatever thresholds are set meanwhile, afterwards they are what they were."""
    before = [edit.threshold.clone() for edit in exits_of(at)]
    try:
        yield
    finally:
        for edit, value in zip(exits_of(at), before, strict=True):
            edit.threshold.copy_(value)


def describe(c: exit_budget.Confidences, t: Sequence[float], each: Sequence[int]) -> dict[str, Any]:
    """What leaving by these thresholds costs on the data of these confidences, as plain data."""
    left = exit_budget.leave(c, t)
    return {"thresholds": [least if math.isfinite(least) else None for least in t[:-1]],
            "left": [left.count(k) / len(left) for k in range(len(c))],
            "flops": list(each), "expected_flops": exit_budget.cost(left, each)}

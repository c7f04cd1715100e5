"""Peak learning rates to start from, where the user names none.

A method states the rate that its paper uses, as its class attribute ``rate``: for long trainings of models of some hundred
million parameters. With a new head, which starts from nothing and trains at the same rate, on a small set and a small model, that
is too slow: there the table below goes first. LoRA's was measured on the built-in model and set (480 rows: 75.5 % at 1e-3, 78 % at
3e-3, 76.5 % at 1e-2, where a linear head on frozen features reaches 72.5 %); the others are of the same order, and
``benchmarks/foundation.py`` shows what they give. Models far larger than some ten million parameters want less.
"""
from __future__ import annotations

from typing import Any

from torch import nn

from thrifty.core import Attachment, Method, set_apart
from thrifty.core.errors import NoSuchSetting
from thrifty.tasks import Task

WITH_NEW_HEAD = {
    "full": 1e-4, "linear-probe": 1e-2, "bitfit": 3e-3, "layernorm": 3e-3,
    "lora-fa": 4e-3, "vera": 1e-2, "adalora": 2e-3, "dynamic-rank-dora": 2e-3,
    "lora": 2e-3, "dora": 2e-3, "ia3": 1e-2,
    "compacter": 3e-3, "phm-adapter": 3e-3, "low-rank-adapter": 3e-3, "bapna": 2e-3, "lhuc": 1e-2, "mam": 2e-3,
    "houlsby": 2e-3, "pfeiffer": 2e-3, "parallel-adapter": 2e-3,
    "adapter-drop": 2e-3, "adapter-fusion": 5e-4, "mad-x": 2e-3, "knowledge-adapter": 2e-3, "pals": 1e-4,
    "hyperformer": 1e-4,  # each number of its adapters is a sum of some fifty that train, and moves as much faster
    "prefix": 3e-4, "prompt": 1e-1, "vpt": 1e-2,
    "vqt": 1e-2, "expres": 1e-2, "noah": 2e-3,
    "p-tuning": 3e-3, "attempt": 1e-1, "unipelt": 2e-3, "u-tuning": 2e-3, "res-tuning": 2e-3,
    "l2-sp": 1e-4, "delta": 1e-4, "stochnorm": 1e-4, "co-tuning": 1e-4, "lwf": 1e-4, "bi-tuning": 1e-4, "bss": 1e-4,
    "b-tuning": 1e-4,
    "distillation": 1e-4, "distillation-token": 1e-4,
    "lst": 3e-3, "res-tuning-bypass": 2e-3, "k-adapter": 5e-4, "diff-pruning": 1e-4,
}


def default_rate(method: Method, fresh_head: bool) -> float:
    """The peak rate for ``method``, with or without a head that trains from nothing beside it.

    Settings that ask for a rate of their own are heard first.
    """
    own = method.start_rate()
    if fresh_head and own == method.rate and method.name in WITH_NEW_HEAD:
        return WITH_NEW_HEAD[method.name]
    return own


def head_of(at: Attachment, task: Task) -> list[nn.Parameter]:
    """What trains of the head: parameters of the base that no checkpoint filled, and edits that answer in its place."""
    own = dict(at.model.named_parameters())
    return [own[name] for name in task.head_parameters if name in at.base] + [
        p for edit in at.edits.values() if edit.replaces for p in edit.parameters()]


def give_head(groups: list[dict[str, Any]], head: list[nn.Parameter], rate: float) -> list[dict[str, Any]]:
    """The optimiser's ``groups`` with the parameters of the ``head`` at that peak rate.

    Raises:
        NoSuchSetting: there is no head.
    """
    if not head:
        raise NoSuchSetting("head_rate: no head trains here, so there is nothing that it could be the rate of")
    return set_apart(groups, head, rate)

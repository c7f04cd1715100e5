"""A model's answers to a whole table."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from thrifty.tasks import Task
from thrifty.train.interrupt import Wish
from thrifty.train.precision import Precision
from thrifty.train.processes import Processes, inside, move
from thrifty.trunk import Direct

Answer = Callable[[nn.Module, Any], list[Any]]


class Abandoned(Exception):
    """An evaluation that was given up because the user asked to stop."""


def length(example: Mapping[str, Any]) -> int:
    """Tokens of an encoded example, 0 where it is no text."""
    if "choices" in example:
        return max(map(length, example["choices"]))
    return len(example.get("input_ids", ()))


def by_task(examples: Sequence[Mapping[str, Any]]) -> dict[str | None, list[int]]:
    """The places of each task's examples, short ones first; all under None where there is one task."""
    found: dict[str | None, list[int]] = {}
    for place in sorted(range(len(examples)), key=lambda i: length(examples[i])):
        found.setdefault(examples[place].get("task"), []).append(place)
    return found


def answer(question: Answer, task: Task, model: nn.Module, examples: list[dict[str, Any]], batch: int, processes: Processes,
           precision: Precision, wish: Wish | None = None, kept: Direct | None = None) -> list[Any]:
    """``question(model, batch)`` for every example, in their order. Examples of like length go together, to pad little, and
    those of different tasks never do. ``kept`` knows what of the model need not be computed.

    Several processes share the batches, unless weights are spread over them: then every step needs all, and all do all.

    Raises:
        Abandoned: ``wish`` came while one process was alone at it.
    """
    batches = [rows[i : i + batch] for rows in by_task(examples).values() for i in range(0, len(rows), batch)]
    shared = processes.world > 1 and not processes.sharded
    found: list[Any] = [None] * len(examples)
    kept = kept or Direct()
    mine: list[tuple[int, Any]] = []
    called = inside(model)
    was = called.training
    called.eval()
    try:
        for chosen in batches[processes.rank :: processes.world] if shared else batches:
            if wish is not None and wish.stop and processes.world == 1:
                raise Abandoned
            rows = [examples[i] for i in chosen]
            made = move(kept.collate(task, rows), processes.device)
            with precision.autocast(), kept.giving(rows, made):
                answers = question(called, made)
            mine += zip(chosen, answers, strict=True)
    finally:
        called.train(was)
        processes.settle(called)
    for part in processes.gather(mine) if shared else [mine]:
        for i, one in part:
            found[i] = one
    return found

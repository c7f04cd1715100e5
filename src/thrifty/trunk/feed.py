"""Feed: how rows of a task reach a model."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.core.errors import Unfit

Examples = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Feed:
    """``task`` makes batches for ``model`` on ``device``; ``autocast`` gives the context in which it computes."""

    task: Any
    model: nn.Module
    device: torch.device
    autocast: Callable[[], Any]

    def __call__(self, examples: Examples) -> dict[str, Any]:
        """What the model is given for these rows."""
        part, batch = self.ask(examples)
        inputs: dict[str, Any] = part.inputs(self.model, batch)
        return inputs

    def ask(self, examples: Examples) -> tuple[Any, dict[str, Any]]:
        """The task of these rows, which the model has been told of several, and the batch as that task takes it."""
        made = self.task.collate(examples)
        batch = {key: value.to(self.device) if isinstance(value, Tensor) else value for key, value in made.items()}
        asked: tuple[Any, dict[str, Any]] = self.task.turn(self.model, batch)
        return asked


def number(train: Examples, validation: Examples) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The same rows, each knowing its number among all, under which its states are ``kept``."""
    every = [{**example, "kept": place} for place, example in enumerate([*train, *validation])]
    return every[: len(train)], every[len(train) :]


def mask_of(batch: Mapping[str, Any]) -> Tensor:
    """Where the texts of a batch have tokens [B, T].

    Raises:
        Unfit: nothing says so, or a row holds several texts.
    """
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor):
        raise Unfit("texts come without an attention mask, so padding cannot be told from text")
    if mask.dim() != 2:
        raise Unfit("a row holds several texts, which enter the blocks as rows of their own")
    return mask


def alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two batches hold the same tensors."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one if isinstance(one[key], Tensor))


def changes(task: Any, example: dict[str, Any]) -> bool:
    """Whether a training row is changed by chance before each step sees it."""
    return bool(task.vary([example], 0, 0) != [example])


def by_length(examples: Examples, lengths: Sequence[int], size: int) -> list[list[int]]:
    """The places of all rows in batches of ``size``: those of like length together, those of different tasks never."""
    found: dict[Any, list[int]] = {}
    for place in sorted(range(len(examples)), key=lambda i: lengths[i]):
        found.setdefault(examples[place].get("task"), []).append(place)
    return [rows[i : i + size] for rows in found.values() for i in range(0, len(rows), size)]

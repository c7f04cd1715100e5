"""Routing: telling the edits on a model which task, or which tasks, the rows of the next batch belong to."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .errors import NoSuchSetting, nearest
from .ledger import attachments

if TYPE_CHECKING:
    from .attachment import Attachment

Told = int | str | Sequence[int | str] | Tensor | None


@contextlib.contextmanager
def task(model: nn.Module, told: Told) -> Iterator[None]:
    """While the context lasts, batches belong to ``told``: a task by name or number, or one per row of the batch.

        with thrifty.task(model, "rte"):
            model(**batch)

    Raises:
        NoSuchSetting: no attachment on the model knows tasks, or one of those that do has no such task.
    """
    before = {name: at.context.task for name, at in attachments(model).items()}
    tell(model, told)
    try:
        yield
    finally:
        for name, at in attachments(model).items():
            at.context.task = before.get(name)


def tell(model: nn.Module, told: Told) -> None:
    """As ``task``, until something else is told."""
    knowing = [at for at in attachments(model).values() if at.tasks]
    if told is not None and not knowing:
        raise NoSuchSetting(f"nothing on this {type(model).__name__} knows tasks: attach a method with tasks=[names]")
    for at in knowing:
        at.context.task = None if told is None else number(at, told)


def number(at: Attachment, told: Told) -> int | Tensor:
    """A task's number, or those of all rows [B], in the order in which the attachment lists its tasks.

    Raises:
        NoSuchSetting: there is no such task; the message names the nearest.
    """
    if isinstance(told, Tensor):
        if told.dtype != torch.long or told.dim() > 1:
            raise NoSuchSetting(f"tasks of rows are whole numbers [B], not {told.dtype} of shape {tuple(told.shape)}")
        for extreme in {int(told.min()), int(told.max())}:
            one(at, extreme)
        return told if told.dim() else int(told)
    if isinstance(told, (str, int)):
        return one(at, told)
    assert told is not None
    return torch.tensor([one(at, each) for each in told], dtype=torch.long, device=at.seen.device)


def one(at: Attachment, told: int | str) -> int:
    """The number of one task.

    Raises:
        NoSuchSetting: it is none of the attachment's.
    """
    if isinstance(told, str):
        if told not in at.tasks:
            raise NoSuchSetting(f"{at.name!r} has no task {told!r}." + nearest(told, at.tasks, 40))
        return at.tasks.index(told)
    if isinstance(told, bool) or not 0 <= told < len(at.tasks):
        raise NoSuchSetting(f"{at.name!r} has no task number {told}: its {len(at.tasks)} tasks are {', '.join(at.tasks)}")
    return told

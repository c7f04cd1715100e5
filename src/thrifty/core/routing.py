"""Routing: telling the edits on a model which task, or which tasks, the rows of the next batch belong to."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import NoSuchSetting, ThriftyError, nearest
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


def name_tasks(tasks: Sequence[str]) -> list[str]:
    """The tasks as a list of names.

    Raises:
        NoSuchSetting: a name is empty, or stands twice.
    """
    if isinstance(tasks, str) or not all(isinstance(name, str) and name for name in tasks) or len(set(tasks)) < len(tasks):
        raise NoSuchSetting(f"tasks= is a list of different names, not {tasks!r}")
    return list(tasks)


def add_tasks(at: Attachment, tasks: Sequence[str], **tables: Mapping[str, Any]) -> None:
    """Let ``at``, trained or loaded, serve further tasks: a language known by its features, a pair of known languages.

        thrifty.add_tasks(at, ["yo"], features={"yo": [0, 1, 1]})

    ``tables`` are further entries for settings of the method that are tables.

    Raises:
        NoSuchSetting: a task is served already, a table is none of the method's, or an entry is missing or wrong.
        Unfit: the method can serve no tasks but those that it was attached with.
    """
    method = at.method
    if method is None or not at.tasks:
        why = "does not tell tasks apart" if method else "is of a method that is not known here"
        raise NoSuchSetting(f"{at.name!r} {why}, so it can take in no further tasks")
    every = name_tasks([*at.tasks, *tasks])
    settings = method.settings()
    known = [key for key, value in settings.items() if isinstance(value, dict)]
    for key, entries in tables.items():
        if key not in known:
            raise NoSuchSetting(f"{method.name} has no table {key!r}." + nearest(key, known))
        if other := [name for name in entries if settings[key].get(name, entries[name]) != entries[name]]:
            raise NoSuchSetting(f"{key}[{other[0]!r}] is {settings[key][other[0]]!r} already, and was perhaps trained so")
        settings[key] = {**settings[key], **entries}
    wider = method.make(**settings)
    wider.check()
    wider.more_tasks(at, every[len(at.tasks):])
    at.method, at.about["tasks"] = wider, every
    at._changed()


def by_task(which: int | Tensor, act: Callable[..., Tensor], h: Tensor, *beside: Tensor | None) -> Tensor:
    """``act(task, h, *beside)`` where the batch is of one task; else that for the rows [B, ...] of each, put back in order.

    What stands ``beside`` h is divided as h is, unless it is None or a single row for all.

    Raises:
        ThriftyError: tasks were told for more or fewer rows than there are.
    """
    if isinstance(which, int):
        return act(which, h, *beside)
    if len(which) != len(h):
        raise ThriftyError(f"the tasks of {len(which)} rows were told, but {len(h)} rows arrive (beam search repeats rows)")
    which = which.to(h.device)
    rows = [(which == each).nonzero().flatten() for each in which.unique()]
    parts = [act(int(which[own[0]]), h[own], *(t if t is None or len(t) == 1 else t[own] for t in beside)) for own in rows]
    return torch.cat(parts)[torch.cat(rows).argsort()]

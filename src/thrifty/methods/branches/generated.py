"""Adapters whose tensors something larger makes for the task at hand, and which may be kept once they are made: what
HyperFormer (Karimi Mahabadi et al., ACL 2021) and UDapter (Üstün et al., EMNLP 2020) have in common."""
from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...core import Branch, Site, by_task
from ...core.errors import Unfit
from ...core.routing import one

if TYPE_CHECKING:
    from ...core import Attachment

Shapes = Mapping[str, tuple[int, ...]]


class Generated(Branch):
    """y + A(y), where ``make`` gives the tensors of A for a task; with ``kept`` shapes A has tensors of its own instead."""

    def __init__(self, site: Site, kept: Shapes | None):
        super().__init__(site)
        self.own = None if kept is None else nn.ParameterDict({n: nn.Parameter(torch.zeros(s)) for n, s in kept.items()})

    def make(self, task: int) -> dict[str, Tensor]:
        """The tensors of the adapter of one task, by name."""
        raise NotImplementedError

    def adapt(self, h: Tensor, made: Mapping[str, Tensor]) -> Tensor:
        """A(h) with these tensors; h [rows, ..., d] -> [rows, ..., d] in their precision."""
        raise NotImplementedError

    def branch(self, h: Tensor) -> Tensor:
        """A(h) with the tensors of the batch's task, or of each row's."""
        if self.own is not None:
            return self.adapt(h, dict(self.own.items()))
        return by_task(self.context.which(), lambda task, rows: self.adapt(rows, self.make(task)), h)

    def keep(self, made: Mapping[str, Tensor]) -> None:
        """Hold these tensors from now on, instead of what made them."""
        for name, _ in list(self.named_children()):
            delattr(self, name)
        self.own = nn.ParameterDict({name: nn.Parameter(t.detach().clone()) for name, t in made.items()})


@torch.no_grad()
def specialise(at: Attachment, task: str | int) -> None:
    """Make the adapters of one task once, keep them, and throw away what makes them and every other task.

    The outputs for that task do not change, it no longer needs to be told, and the file becomes as small as that of ordinary
    adapters. An optimiser made before holds the old parameters: make a new one to train on.

    Raises:
        NoSuchSetting: there is no such task.
        Unfit: the attachment holds no adapters that are made, or was specialised already.
    """
    if at.context.shared is None or not any(isinstance(edit, Generated) for edit in at.edits.values()):
        raise Unfit(f"{at.name!r} holds no adapters that are made anew for each task, so there is nothing to specialise")
    number = one(at, task)
    at.context.shared.eval()
    for row in at.plan:
        edit = at.edits[row.key]
        if isinstance(edit, Generated):
            edit.keep(edit.make(number))
            row.numbers = {**row.numbers, "kept": True}
    at.about["tasks"], at.context.task = [at.tasks[number]], None
    at.unshare()


def refuse_specialised(at: Attachment, tasks: list[str]) -> None:
    """Refuse further tasks where those of one task were kept.

    Raises:
        Unfit: what makes adapters is gone.
    """
    if at.context.shared is None:
        raise Unfit(f"{at.name!r} was specialised to {at.tasks[0]!r}: what would make adapters for {', '.join(tasks)} is gone")

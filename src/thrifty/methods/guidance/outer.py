"""Outer: a method that adds something to another, its inner one, and leaves everything else to it."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...core import Method, need

if TYPE_CHECKING:
    from ...core import Attachment


class Outer(Method):
    """Every hook is that of the ``inner`` method; subclasses override those to which they add something."""

    intermittent = True  # as the inner method may be

    def inner(self) -> Method:
        """The method that this one goes around, set up."""
        raise NotImplementedError

    def check(self) -> None:
        """The inner method exists, and is fit."""
        self.inner().check()

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Put the inner method on ``at.model``."""
        self.inner().attach(at, batches)

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        """The inner method's own."""
        return self.inner().loss(at, task, model, batch)

    def penalty(self, at: Attachment) -> Tensor | float:
        """The inner method's own."""
        return self.inner().penalty(at)

    def step(self, at: Attachment, step: int, total: int) -> None:
        """The inner method's own."""
        self.inner().step(at, step, total)

    def settled(self, at: Attachment) -> bool:
        """The inner method's own."""
        return self.inner().settled(at)

    def resume(self, at: Attachment, state: Mapping[str, Tensor]) -> None:
        """The inner method's own."""
        self.inner().resume(at, state)

    def calibrate(self, at: Attachment, task: Any, batches: Iterable[Any]) -> None:
        """The inner method's own."""
        self.inner().calibrate(at, task, batches)

    def finish(self, at: Attachment) -> None:
        """The inner method's own."""
        self.inner().finish(at)

    def groups(self, at: Attachment, rate: float, decay: float) -> list[dict[str, Any]]:
        """The inner method's own."""
        return self.inner().groups(at, rate, decay)


class Around(Outer):
    """An outer method whose settings ``around`` and ``settings_of`` name the inner one, by default full fine-tuning."""

    if TYPE_CHECKING:
        around: str
        settings_of: dict[str, Any]

    def check(self) -> None:
        """The inner method is another one, exists, and is fit."""
        from .. import names

        need(self.around.strip().lower() not in names(type(self)), self, "around", "another method")
        super().check()

    def inner(self) -> Method:
        """The method of that name, with its settings."""
        from .. import make

        return make(self.around, **self.settings_of)

    def start_rate(self) -> float:
        """The inner method's."""
        return self.inner().start_rate()

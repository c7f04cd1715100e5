"""What the parts of a composition see: a context of their own, with their own taps and their own shared module."""
from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..core import Edit, Shared, Site, register, registered


class View:
    """What the edits of one part read as their context: the attachment's, but with taps and a shared module of their own."""

    def __init__(self, whole: Any, part: str):
        self.whole, self.part = whole, part
        self.taps: dict[Any, Any] = {}
        self.views: dict[str, View] = {}

    @property
    def shared(self) -> Any:
        """The module that the edits of this part share."""
        return self.whole.shared.branches[self.part]

    @property
    def task(self) -> Any:
        """The task of the batch."""
        return self.whole.task

    def which(self) -> int | Tensor:
        """The task of the batch, or of its rows."""
        found: int | Tensor = self.whole.which()
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "taps": {}}


@register("branches")
class Branches(Shared):
    """The shared modules of several parts: {part: [registered name, numbers, whether it is frozen]}."""

    def __init__(self, parts: dict[str, list[Any]]):
        super().__init__()
        self.branches = nn.ModuleDict({name: registered(kind)(**numbers) for name, (kind, numbers, _) in parts.items()})
        for name, (_, _, frozen) in parts.items():
            self.branches[name].requires_grad_(not frozen)


@register("tap-after")
class TapAfter(Edit):
    """Changes nothing: leaves the site's output under ``key``, until the next forward pass."""

    passive = True

    def __init__(self, site: Site, key: str):
        super().__init__(site)
        self.key = key

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y, as it is."""
        self.context.taps[self.key] = y
        return y

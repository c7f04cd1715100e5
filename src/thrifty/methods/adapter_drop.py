"""AdapterDrop: On the Efficiency of Adapters in Transformers (Rücklé, Geigle, Glockner, Beck, Pfeiffer, Reimers, Gurevych;
EMNLP 2021, arXiv:2010.11918)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..core import Edit, Method, Site, need, register
from .guidance.outer import Outer

if TYPE_CHECKING:
    from ..core import Attachment


@register("draw-depth")
class Draw(Edit):
    """At the model, in training: n ~ Uniform{0, ..., layers - 1}, and no edit of the first n blocks acts on this batch."""

    port = "call"

    def __init__(self, site: Site, layers: int):
        super().__init__(site)
        self.layers = layers
        self.out: list[Edit] = []

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, as they are."""
        for edit in self.out:
            edit.on = True
        self.out = []
        if self.training:
            n = int(torch.randint(self.layers, ()))
            self.out = [edit for edit in self.site.module.modules() if isinstance(edit, Edit) and edit.on
                        and edit.context is self.context and 0 <= edit.site.depth < n]
            for edit in self.out:
                edit.on = False
        return args, kwargs


@dataclass
class AdapterDrop(Outer):
    """Another method without its edits in the lowest blocks, so that these compute, and learn, nothing for the task.

    Specialised (the default): blocks 0 to ``skip`` - 1 of each stack never hold an edit, and what the method trains of the
    base below the first adapted block stays frozen too. So the backward pass ends at block ``skip``, and many tasks
    share what lies below (`thrifty.Parallel` computes it once). ``robust``: every training batch draws n from 0 to L - 1 and
    goes without the edits of the first n blocks; afterwards any number may be left out:

        at.disable(lambda row: 0 <= row.depth < n)

    ``adapter`` is the method's name, ``settings_of`` its settings.
    """

    name = "adapter-drop"
    aliases = ("adapterdrop",)
    route = "add modules"
    paper = "Rücklé et al., AdapterDrop: On the Efficiency of Adapters in Transformers, EMNLP 2021, arXiv:2010.11918"
    trains = "what the adapter trains, above the blocks that are skipped"
    inference = "the adapter's, in fewer layers; the layers below are shared by all tasks"
    identity_at_start = False
    rate = 1e-4

    adapter: str = "pfeiffer"
    skip: int = 5
    robust: bool = False
    settings_of: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """The adapter exists and is fit, and the number is one of blocks."""
        need(self.skip >= 0, self, "skip", "at least 0")
        need(self.adapter.strip().lower() != self.name, self, "adapter", "another method")
        super().check()

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Attach the adapter, then take away what is too low; or put the draw beside it.

        Raises:
            NoSuchSetting: a stack has fewer than ``skip`` blocks.
        """
        blocks = at.sites("block")
        layers = 1 + max(site.depth for site in blocks)
        super().attach(at, batches)
        if self.robust:
            at.put(at.sites("model")[0], Draw, layers=layers)
            return
        need(self.skip <= layers, self, "skip", f"at most {layers}, the number of blocks")
        for row in [row for row in at.plan if 0 <= row.depth < self.skip]:
            at.take_away(row.key)
        if self.skip:
            kept = [site.path + "." for site in blocks if site.depth >= self.skip]
            for name in _below(at, [site.path for site in blocks]):
                if not name.startswith(tuple(kept)):
                    at.release(name)

    def finish(self, at: Attachment) -> None:
        """The adapter's own; the draw is no longer needed."""
        super().finish(at)
        for row in [row for row in at.plan if row.edit == Draw.registered]:
            for edit in at.edits[row.key].out:  # type: ignore[union-attr]
                edit.on = True
            at.take_away(row.key)

    def inner(self) -> Method:
        """The adapter."""
        from . import make

        return make(self.adapter, **self.settings_of)


def _below(at: Attachment, blocks: list[str]) -> list[str]:
    """What trains in place in the blocks or before the first of them, in the model's order."""
    names = [name for name, _ in at.model.named_parameters()]
    inside = [i for i, name in enumerate(names) if name.startswith(tuple(path + "." for path in blocks))]
    return [name for name in at.base if name in names[: inside[-1] + 1]] if inside else []

"""Attachment: the live handle on one method attached to one model."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import ledger as ledgers
from . import state as states
from .building import Building
from .errors import CannotMerge, DeadEdit, ThriftyError
from .hooks import install, rehook, remove
from .merging import MergeReport, fold_all, lifted, restore, touched
from .plan import Row
from .probe import Example, uncalled
from .summary import Summary, summarise


class Attachment(Building):
    """What one method put on ``model`` under ``name``: edits, a shared module, base parameters that train in place.

    All tensors live in the model's own module tree; this object knows where, and keeps the plan that can rebuild it.
    """

    @property
    def activations(self) -> str:
        """What the model's forward passes keep for the backward pass: "all" that torch keeps; "less", where what one cheap
        operation makes of what is kept anyway is made again; "least", where outputs of frozen layers are too. It may be set.

        Gradients are the same. With less than "all", torch refuses ``torch.func.grad`` inside of the model's own forward.
        """
        return self._book().level

    @activations.setter
    def activations(self, level: str) -> None:
        self._book().keep(level)

    # -- using ------------------------------------------------------------------------------------------------------------
    def active(self) -> list[str]:
        """Names of the trainable tensors whose edit is on."""
        off = {f"edit:{key}:" for key, edit in self.edits.items() if not edit.on}
        return [n for n, _ in self.named_parameters() if not any(n.startswith(o) for o in off)]

    def check(self, example: Example) -> None:
        """Run the model once and look whether every edit is reached.

        Raises:
            DeadEdit: naming the edits that the forward pass never calls.
        """
        acting = [(key, e) for key, e in self.edits.items() if e.on]
        dead = uncalled(self.model, example, acting)
        if dead:
            raise DeadEdit(f"{len(dead)} of {len(acting)} edits are never reached by the model's forward pass: {dead[:5]}. "
                           "The module there is not called (its weights are read directly, or this input takes another "
                           "path): choose other sites")

    def enable(self, on: bool = True, where: Callable[[Row], bool] = lambda row: True) -> None:
        """Switch edits on or off, all or those whose plan row ``where`` accepts. Off for all is the base model, bit for bit.

        Raises:
            ThriftyError: the attachment is merged, so that there is nothing to switch.
        """
        self._alive()
        if self.merged:
            raise ThriftyError(f"the attachment {self.name!r} is merged into the weights: unmerge() it before switching it")
        every = all(where(row) for row in self.plan)
        for row in self.plan:
            if where(row):
                row.on = self.edits[row.key].on = on
                rehook(self.edits[row.key].site.module)
        if every:
            self._swap_base(on)

    def disable(self, where: Callable[[Row], bool] = lambda row: True) -> None:
        """``enable(False)``."""
        self.enable(False, where)

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """The base model, as long as the context lasts."""
        before = {row.key for row in self.plan if row.on}
        stashed = bool(self.stash)
        self.disable()
        try:
            yield
        finally:
            self.enable(where=lambda row: row.key in before)
            self._swap_base(not stashed)

    def merge(self, limit: float = 0.05, quantised: str = "refuse", keep_base: bool = True) -> MergeReport:
        """Fold every edit into the base weights (in float32) and take the edits off the tree.

        ``limit`` bounds what rounding to the base's precision may lose, relative to the adapter's own effect. With
        ``keep_base`` the originals stay in memory, so that ``unmerge`` and ``detach`` restore the base exactly; without, the
        merge is final and the handle is closed.

        Raises:
            CannotMerge: before anything is touched, naming the edit that is no change of a weight, the quantised layer, the
                site where more than ``limit`` would be lost, or the attachment that still keeps an original under a final merge.
        """
        self._alive()
        if self.merged:
            raise ThriftyError(f"the attachment {self.name!r} is merged already")
        report, self.backup, self.replaced = fold_all(self, limit, quantised)
        if not keep_base:
            self._refuse_kept()
        self._uninstall()
        self.merged = True
        if keep_base:
            self._book().merges.append(self)
        else:
            self.backup, self.replaced, self.base = {}, [], {}
            self._close()
        return report

    def unmerge(self) -> None:
        """Undo ``merge``, bit for bit."""
        if not self.merged:
            raise ThriftyError(f"the attachment {self.name!r} is not merged")
        with lifted(self):
            restore(self.model, self.backup, self.replaced)
        self.backup, self.replaced, self.merged = {}, [], False
        self._book().merges.remove(self)
        for key, edit in self.edits.items():
            install(edit.site.module, self.slots[key], edit)
        if self.context.shared is not None:
            install(self.model, f"{self.name}_shared", self.context.shared)

    @torch.no_grad()
    def detach(self) -> None:
        """Take everything away. The base is what it was before, bit for bit."""
        if self.closed:
            return
        if self.merged:
            self.unmerge()
        self._uninstall()
        if not self.stash:
            with lifted(self):
                for name, original in self.base.items():
                    self._tensor(name).copy_(original)
        for name in self.base:
            if isinstance(p := self._tensor(name), nn.Parameter):
                p.requires_grad_(False)
                p._backward_hooks = None
                p._post_accumulate_grad_hooks = None  # type: ignore[assignment]
        self._close()

    def summary(self) -> Summary:
        """What trains, where, and how much of it there is."""
        return summarise(self)

    # -- state ------------------------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Tensor]:
        """All tensors that the adapter needs, by name, whole (on every rank when sharded) and on the CPU."""
        return states.state(self)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put tensors back.

        Raises:
            BrokenArtifact: a tensor is missing, unknown, or of another shape; nothing has been changed then.
        """
        states.load_state(self, state)

    def save(self, path: Any, **about: Any) -> Any:
        """Write the adapter folder; see ``thrifty.artifact.save``."""
        from ..artifact import save

        return save(self, path, **about)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "watch": None, "surveyed": None}

    def __repr__(self) -> str:
        kind = self.method.name if self.method else "loaded"
        count = sum(p.numel() for p in self.parameters())
        return f"<Attachment {self.name!r}: {kind}, {len(self.edits)} edits, {count:,} parameters>"

    # -- inside -----------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def _swap_base(self, on: bool) -> None:
        if on == (not self.stash):
            return
        with lifted(self):
            for name, original in self.base.items():
                tensor = self._tensor(name)
                if on:
                    tensor.copy_(self.stash[name])
                else:
                    self.stash[name] = tensor.detach().clone()
                    tensor.copy_(original)
        if on:
            self.stash = {}

    def _refuse_kept(self) -> None:
        """A final merge under tensors whose originals another attachment keeps would be undone by that one."""
        for other in self._book().attachments.values():
            kept = (touched(other) | other.base.keys()) & touched(self)
            if other is not self and kept:
                restore(self.model, self.backup, self.replaced)
                self.backup, self.replaced = {}, []
                raise CannotMerge(f"{other.name!r} keeps the original of {sorted(kept)[0]!r} and would undo a final merge: detach "
                                  "it or merge it for good first, or merge with keep_base=True")

    def _book(self) -> ledgers.Ledger:
        book = ledgers.ledger(self.model)
        assert book is not None, "an attachment that is not closed is in its model's ledger"
        return book

    def _uninstall(self) -> None:
        for key, edit in self.edits.items():
            holder = edit.site.module
            if self.slots[key] in getattr(holder, "edits", {}):
                remove(holder, self.slots[key])
        slot = f"{self.name}_shared"
        if slot in getattr(self.model, "edits", {}):
            remove(self.model, slot)

    def _close(self) -> None:
        if self.watch is not None:
            self.watch.stop()
        ledgers.leave(self)
        self.closed = True

    def _alive(self) -> None:
        if self.closed:
            raise ThriftyError(f"the attachment {self.name!r} was detached, or merged for good")

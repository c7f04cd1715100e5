"""Kept: what a training asks for every batch, whether the frozen part is computed or given."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from thrifty.core import Attachment
from thrifty.core.errors import Unfit
from thrifty.trunk.cut import Cut, Place, find, when
from thrifty.trunk.feed import Examples, mask_of
from thrifty.trunk.replay import Replay
from thrifty.trunk.rows import put_together
from thrifty.trunk.store import Store
from thrifty.trunk.timeline import Timeline


class Direct:
    """Nothing is kept: everything is computed. ``record`` says why, where something was to be kept if possible."""

    def __init__(self, record: dict[str, Any] | None = None) -> None:
        self.record = record

    def collate(self, task: Any, examples: Examples) -> dict[str, Any]:
        """The rows as a batch."""
        batch: dict[str, Any] = task.collate(examples)
        return batch

    @contextlib.contextmanager
    def giving(self, examples: Examples, batch: Mapping[str, Any], turn: int = 0) -> Iterator[None]:
        """While the context lasts the model is asked about ``batch``, made of these rows in the epoch ``turn``."""
        yield

    def remove(self) -> None:
        """Leave the model as it was."""


class Kept(Direct):
    """The states at the places of ``cut`` are read from ``stores``, ``copies`` of each training row in turn, one an epoch.

    ``blank`` is what pictures are replaced by, which nobody reads; None for texts.
    """

    def __init__(self, at: Attachment, cut: Cut, timeline: Timeline, stores: Mapping[Place, Store], trained: int, copies: int,
                 blank: Tensor | None, alive: bool, record: dict[str, Any]) -> None:
        super().__init__(record)
        self.at, self.cut, self.timeline, self.stores = at, cut, timeline, stores
        self.trained, self.copies, self.blank, self.alive = trained, copies, blank, alive
        self.revision = at.revision
        self.replay = Replay(cut, timeline, blank is not None)

    def collate(self, task: Any, examples: Examples) -> dict[str, Any]:
        """The rows as a batch, without looking at pictures."""
        if self.blank is not None:
            examples = [{**example, "pixels": self.blank} for example in examples]
        return super().collate(task, examples)

    @contextlib.contextmanager
    def giving(self, examples: Examples, batch: Mapping[str, Any], turn: int = 0) -> Iterator[None]:
        """While the context lasts the model is given the states of these rows.

        Raises:
            Unfit: the method has begun to change the frozen part; or the model is asked about other rows.
        """
        if self.revision != self.at.revision:
            self._look_again()
        numbers = [self._number(example["kept"], turn) for example in examples]
        states = {}
        for place, store in self.stores.items():
            flat, lengths = store.take(numbers)
            mask = None if self.blank is not None or place == self.cut.waist else mask_of(batch)
            states[place] = put_together(flat.to(self.at.seen.device), lengths, mask, place)
        with self.replay.giving(states, batch):
            yield

    def remove(self) -> None:
        """Leave the model as it was."""
        self.replay.remove()

    def _number(self, row: int, turn: int) -> int:
        if row < self.trained:
            return turn % self.copies * self.trained + row
        return self.copies * self.trained + row - self.trained

    def _look_again(self) -> None:
        """The method has changed what trains: does it still lie above the cut, and read no more of what is below?"""
        why = "more of it is read than before"
        try:
            now = find(self.at, self.timeline, self.alive)
            holds = self._covers(now)
        except Unfit as error:
            holds, why = False, str(error)
        if not holds:
            raise Unfit(f"the method has changed what it does to the frozen part, which is kept: {why}; train with cache='off'")
        self.revision = self.at.revision

    def _covers(self, now: Cut) -> bool:
        if self.cut.tail or now.tail:
            return now.tail == self.cut.tail or not self.cut.tail
        end = when(self.timeline, self.cut.places[-1])
        read = {place for place in now.places if when(self.timeline, place) <= end}
        deep = now.waist == self.cut.waist if self.cut.waist else now.below[: len(self.cut.below)] == self.cut.below
        return deep and read <= set(self.cut.places)


def join(pieces: Mapping[Place, Sequence[Tensor]], masks: Mapping[Place, Tensor | None]) -> dict[Place, Tensor]:
    """Pieces of a batch's rows at every place as states of the batch."""
    return {place: put_together(torch.cat(list(own)), [len(piece) for piece in own], masks[place], place)
            for place, own in pieces.items()}

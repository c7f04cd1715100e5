"""Keeping: run the frozen part of a model once per row, and let a training read what it gave."""
from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thrifty.artifact.fingerprint import base_tensors
from thrifty.core import Attachment
from thrifty.core.digest import digests
from thrifty.core.errors import BrokenArtifact, Unfit
from thrifty.trunk import key
from thrifty.trunk.capture import capture
from thrifty.trunk.cut import Place, find
from thrifty.trunk.feed import Examples, Feed, alike, by_length, changes, mask_of
from thrifty.trunk.kept import Direct, Kept, join
from thrifty.trunk.packing import BYTES, LOSES, gap
from thrifty.trunk.proving import find_chance, refuse_company, refuse_questions, refuse_unlike, tolerance
from thrifty.trunk.rows import take_apart
from thrifty.trunk.store import HEADER, Store, Writer, refuse_full
from thrifty.trunk.timeline import record

PROBED = 3  # rows on which the model is asked whether states can stand for what computes them


@dataclass(frozen=True)
class Terms:
    """What is wanted: ``cache`` is "off", "auto", "still" or a number of copies; states are packed as ``precision`` says.

    ``batch`` rows are computed at once, on ``device``, in the context ``autocast``, which is called ``computed``. ``prepared`` is
    how pictures are, ``world`` the number of processes, and ``say`` shows a line to whoever waits.
    """

    cache: str | int
    precision: str
    batch: int
    device: torch.device
    autocast: Callable[[], Any]
    computed: str = "float32"
    prepared: dict[str, Any] | None = None
    world: int = 1
    say: Callable[[str], object] = lambda line: None


def keep(at: Attachment, task: Any, train: Examples, validation: Examples, terms: Terms) -> Direct:
    """What a training of ``at`` on these rows, which know their numbers, asks for every batch.

    Raises:
        Unfit: ``cache`` is "still" or a number, and there is nothing that can be kept, or no room; the message says why.
        BrokenArtifact: a store is damaged.
    """
    if terms.cache == "off":
        return Direct()
    try:
        return Keeping(at, task, train, validation, terms).keep()
    except Unfit as error:
        if terms.cache == "auto":
            return Direct({"setting": "auto", "used": False, "words": str(error)})
        raise Unfit(f"the frozen part cannot be computed once and kept (cache={terms.cache!r}): {error}") from None


class Keeping:
    """One decision what to keep, and the work of computing what is not there yet."""

    def __init__(self, at: Attachment, task: Any, train: Examples, validation: Examples, terms: Terms) -> None:
        if at.method is not None and at.method.solved:
            raise Unfit(f"{at.method.name} takes no steps, so nothing would be read twice")
        if getattr(task, "wanders", False):
            raise Unfit(f"what the model sees in {task.name} depends on what it answered before")
        if terms.world > 1:
            raise Unfit(f"{terms.world} processes share the rows, and each would need the states of other rows in every epoch")
        self.at, self.task, self.train, self.validation, self.terms = at, task, train, validation, terms
        self.feed = Feed(task, at.model, terms.device, terms.autocast)
        self.pictures = "image" in train[0]
        own = [example for example in validation if example.get("task") == validation[0].get("task")]
        places = sorted(range(len(own)), key=lambda i: len(own[i].get("input_ids", ())))
        self.probed = [own[i] for i in sorted({places[0], places[len(places) // 2], places[-1]})] if not self.pictures \
            else own[:PROBED]
        with terms.autocast():
            self.inputs = self.feed(self.probed)
            pair = [example for example in train if example.get("task") == own[0].get("task")][:2]
            self.timeline = record(at.model, self.feed(pair), len(pair))
            self.timeline.agree(record(at.model, self.inputs, len(self.probed)))

    def keep(self) -> Kept:
        """Decide, prove, compute, and stand in.

        Raises:
            Unfit: see `keep`.
        """
        began = time.monotonic()
        with self.terms.autocast():
            whole = find(self.at, self.timeline, alive=False)
            self.chance = find_chance(self.timeline, whole.places, self.inputs)
            self.copies = self._settle()
            self.alive = not self.pictures and self.chance is None
            self.cut = find(self.at, self.timeline, self.alive)
            self._prove()
        stores, reused = self._open()
        self._compare(stores)
        seconds = time.monotonic() - began
        size = sum(store.bytes for store in stores.values())
        self.terms.say(f"frozen part: {'found' if reused else 'computed'} in {seconds:.3g} s; {self.cut.words}")
        about = {"setting": str(self.terms.cache), "used": True, "words": self.cut.words, "places": len(stores), "bytes": size,
                 "seconds": seconds, "reused": reused, "copies": self.copies, "precision": self.terms.precision,
                 "lost": max(store.lost for store in stores.values()),
                 "still": self.chance if self.terms.cache == "still" else None}
        blank = torch.zeros(()).expand(next(iter(self.inputs.values())).shape[1:]) if self.pictures else None
        return Kept(self.at, self.cut, self.timeline, stores, len(self.train), max(1, self.copies), blank, self.alive, about)

    def _settle(self) -> int:
        """How many copies to draw of every training row; 0 if nothing is left to chance."""
        if not alike(self.inputs, self.feed(self.probed)):
            raise Unfit("the same rows make another batch every time")
        cache, changed = self.terms.cache, changes(self.task, self.train[0])
        if changed and self.at.method is not None and self.at.method.second_view:
            raise Unfit(f"{self.at.method.name} compares two views of each picture")
        drawn = "pictures of training rows are changed by chance" if changed else self.chance
        if isinstance(cache, int):
            if drawn is None:
                raise Unfit("nothing in the frozen part is left to chance, so all copies would be equal: cache='auto' keeps one")
            return cache
        if changed or drawn and cache == "auto":
            still = "" if changed else "cache='still' holds it still, "
            raise Unfit(f"{drawn}: {still}cache=N keeps N draws of every row")
        return 0

    def _masks(self, inputs: Mapping[str, Any]) -> dict[Place, Tensor | None]:
        """By place, where texts have tokens; None where there is one piece per row."""
        return {place: None if self.pictures or place == self.cut.waist else mask_of(inputs) for place in self.cut.places}

    def _see(self, inputs: Mapping[str, Any], training: bool = False) -> dict[Place, list[Tensor]]:
        """What stands at every place, one piece per row."""
        with self.terms.autocast():
            seen = capture(self.at.model, self.cut.places, inputs, training)
        return {place: take_apart(seen[place], mask, place) for place, mask in self._masks(inputs).items()}

    def _prove(self) -> None:
        """The probed rows are the same alone and together, and given them the model answers as it does on its own."""
        self.seen, places = self._see(self.inputs), self.cut.places
        self.close = tolerance(self.terms.computed != "float32", {place: own[0] for place, own in self.seen.items()})
        alone = [self._see(self.feed([example])) for example in self.probed]
        refuse_company(places, {place: [one[place][0] for one in alone] for place in places}, self.seen, self.close)
        part, batch = self.feed.ask(self.probed)  # of several tasks the model is told again which
        states = {place: states.to(self.terms.device) for place, states in join(self.seen, self._masks(self.inputs)).items()}
        shown = None if self.pictures else self.inputs.get("attention_mask")
        refuse_unlike(self.cut, self.timeline, self.pictures, self.inputs, states, shown, self.close)
        refuse_questions(self.at, self.cut, self.timeline, self.pictures, part, (batch, self.inputs), states, self.close)

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of every row, 1 for pictures."""
        if self.pictures:
            return [1] * (len(self.train) + len(self.validation))
        return [int(mask_of(batch).sum()) for batch in self.singles]

    @cached_property
    def singles(self) -> list[dict[str, Any]]:
        """Every row of texts as the model takes it."""
        return [self.feed([example]) for example in (*self.train, *self.validation)]

    def _open(self) -> tuple[dict[Place, Store], bool]:
        """The stores of all places, of which those that were not there are written; and whether all were."""
        folder = key.folder()
        sums, rows = digests(base_tensors(self.at.model, frozenset()).items(), whole=True), self._identify_rows()
        abouts = {place: key.describe(self.timeline, place, sums, **rows) for place in self.cut.places}
        paths = {place: folder / key.name(about) for place, about in abouts.items()}
        absent = [place for place in self.cut.places if not paths[place].exists()]
        if absent:
            size = sum(map(self._estimate, absent))
            self.terms.say(f"frozen part: {len(self.lengths):,} rows, {size / 1e6:,.1f} MB into {folder}")
            refuse_full(folder, size)
            self._write(absent, paths, abouts)
        return {place: Store(paths[place], abouts[place]) for place in self.cut.places}, not absent

    def _identify_rows(self) -> dict[str, Any]:
        if self.pictures:
            data = key.digest_pictures([*self.train, *self.validation])
            seen = key.digest_rows([self.feed(self.validation[:2])])  # a callable of one's own has no numbers to compare
        else:
            data, seen = key.digest_rows(self.singles), ""
        drawn = {"copies": self.copies, "limits": self.task.limits, "trained": len(self.train)} if self.copies else {}
        return {"rows": data, "count": len(self.lengths), "prepared": self.terms.prepared, "seen": seen, "drawn": drawn,
                "computed": self.terms.computed, "precision": self.terms.precision}

    def _estimate(self, place: Place) -> int:
        """Bytes that the store of a place will take."""
        trained, piece = len(self.train), self.seen[place][0]
        lengths = [1] * len(self.lengths) if place == self.cut.waist else self.lengths
        tokens, rows = sum(lengths[trained:]), len(lengths) - trained
        tokens, rows = tokens + max(1, self.copies) * sum(lengths[:trained]), rows + max(1, self.copies) * trained
        numbers = piece[0].numel()
        scales = 4 * numbers // piece.shape[-1] if self.terms.precision == "int8" else 0
        return HEADER + 16 * rows + tokens * (numbers * BYTES.get(self.terms.precision, piece.itemsize) + scales)

    def _write(self, absent: Sequence[Place], paths: Mapping[Place, Path], abouts: Mapping[Place, dict[str, Any]]) -> None:
        trained, copies = len(self.train), max(1, self.copies)
        rows = copies * trained + len(self.validation)
        writers: dict[Place, Writer] = {}
        try:
            for place in absent:
                writers[place] = Writer(paths[place], abouts[place], rows, self.terms.precision)
            with torch.random.fork_rng():
                for copy in range(copies):
                    self._fill(writers, self.train, self.lengths[:trained], copy * trained, copy if self.copies else None)
                self._fill(writers, self.validation, self.lengths[trained:], copies * trained, None)
            for writer in writers.values():
                writer.close()
        finally:
            for writer in writers.values():
                writer.discard()

    def _fill(self, writers: Mapping[Place, Writer], examples: Examples, lengths: Sequence[int], start: int,
              copy: int | None) -> None:
        """Compute these rows, for a ``copy`` as a training would draw them, and number them from ``start`` on."""
        for turn, chosen in enumerate(by_length(examples, lengths, self.terms.batch)):
            rows = [examples[i] for i in chosen]
            if copy is not None:
                torch.manual_seed(copy * 1_000_003 + turn)
                rows = self.task.vary(rows, 0, copy)
            seen = self._see(self.feed(rows), training=copy is not None and self.chance is not None)
            for place, writer in writers.items():
                writer.add([start + i for i in chosen], seen[place])

    def _compare(self, stores: Mapping[Place, Store]) -> None:
        """What is stored of the probed rows is what the model gave for them just now.

        Raises:
            BrokenArtifact: it is not.
        """
        trained, limit = len(self.train), self.close + LOSES[self.terms.precision]
        numbers = [max(1, self.copies) * trained + example["kept"] - trained for example in self.probed]
        for place, store in stores.items():
            apart = gap(store.take(numbers)[0], torch.cat(self.seen[place]))
            if not apart <= limit:
                raise BrokenArtifact(f"{store.path} does not hold what the model gives (the difference is {apart:.2g}, relative): "
                                     f"it computed otherwise when that was written. Delete it: rm {store.path}")

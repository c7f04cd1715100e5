"""Cut: the deepest line through a model with an adapter such that nothing that trains, and no edit that acts, lies below it."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from thrifty.core import Attachment, Edit
from thrifty.core.errors import Unfit
from thrifty.core.hooks import main
from thrifty.core.ledger import attachments, merged
from thrifty.trunk.timeline import Timeline

TAPPED = ("call", "input", "output")  # ports at which what a block takes in or gives out can be heard


@dataclass(frozen=True)
class Place:
    """A tensor of the frozen part that what lies above it reads: what the module at ``path`` takes in, or what it gives."""

    port: Literal["in", "out"]
    path: str

    def __str__(self) -> str:
        return f"what enters {self.path}" if self.port == "in" else f"what {self.path} gives"


@dataclass(frozen=True)
class Cut:
    """``below`` are the blocks that need not run, ``places`` what is read of what lies under the cut, in the order of time.

    ``waist``, if there is one, is the last place, where all that is read further up is one vector per example. ``tail``, if there
    is one, are the last modules of the model and all that must run: they read the waist.
    """

    below: tuple[str, ...]
    places: tuple[Place, ...]
    words: str
    waist: Place | None = None
    tail: tuple[str, ...] = ()


@dataclass(frozen=True)
class Actor:
    """Something that trains or acts, and the moment from which on it matters."""

    time: int
    words: str
    path: str
    reads: bool = False  # whether it reads what the module at ``path`` takes in


def when(timeline: Timeline, place: Place) -> int:
    """The moment at which a place is reached."""
    return timeline.began(place.path) if place.port == "in" else timeline.ended(place.path)


def find(at: Attachment, timeline: Timeline, alive: bool) -> Cut:
    """The deepest cut under what ``at`` trains and changes.

    ``alive`` says that what runs before the first block is computed for every batch, as it was when states were stored, so
    that nothing of it must be kept.

    Raises:
        Unfit: there is none; the message says what is in the way.
    """
    if len(attachments(at.model)) > 1 or merged(at.model):
        raise Unfit("another attachment acts on the model too")
    actors, taps = list(act(at, timeline)), list(listen(at, timeline))
    if not taps and (tail := _tail(at.model, timeline, actors)):
        vector = Place("in", tail[0])
        return Cut((), (vector,), f"all but {tail[-1]!r}, which reads one vector per example", vector, tail)
    lowest = min(actors, key=lambda actor: actor.time)
    depth = sum(timeline.ended(path) <= lowest.time for path in timeline.blocks)
    if not depth:
        raise Unfit(f"{lowest.words}, which is not above the first block, {timeline.blocks[0]!r}")
    below = tuple(timeline.blocks[:depth])
    waist = _waist(timeline, below, lowest)
    places = _places(timeline, actors, taps, below, waist, alive)
    every = f"all {depth} blocks" if depth == len(timeline.blocks) else f"{depth} of {len(timeline.blocks)} blocks"
    every += f", and what follows until {waist.path!r} reads one vector per example" if waist else ""
    return Cut(below, places, every + (f"; {len(places)} states are read" if len(places) > 1 else ""), waist)


def act(at: Attachment, timeline: Timeline) -> Iterator[Actor]:
    """What trains in place, and every edit that is no mere tap on a block, be it on or off."""
    for name in at.base:
        path = name.rpartition(".")[0]
        yield Actor(timeline.began(path), f"{name!r} trains", path)
    for edit in at.edits.values():
        if not _taps(edit, timeline):
            path, after = edit.site.path, edit.port == "output"
            time = timeline.ended(path) if after else timeline.began(path)
            yield Actor(time, f"{edit.registered!r} acts on the {edit.port} of {repr(path) if path else 'the model'}", path, after)


def listen(at: Attachment, timeline: Timeline) -> Iterator[Edit]:
    """The edits that only hear what a block takes in or gives out."""
    return (edit for edit in at.edits.values() if _taps(edit, timeline))


def _taps(edit: Edit, timeline: Timeline) -> bool:
    return edit.passive and edit.port in TAPPED and edit.site.path in timeline.blocks


def _waist(timeline: Timeline, below: tuple[str, ...], lowest: Actor) -> Place | None:
    """The first place above the blocks where there is one vector per example, if nothing trains or acts before."""
    if len(below) < len(timeline.blocks):
        return None
    end = timeline.ended(below[-1])
    found = (path for path, call in timeline.calls.items() if end < call.began <= lowest.time and call.times == 1
             and timeline.holds_rows(path))
    path = min(found, key=timeline.began, default=None)
    return Place("in", path) if path is not None else None


def _places(timeline: Timeline, actors: list[Actor], taps: list[Edit], below: tuple[str, ...], waist: Place | None,
            alive: bool) -> tuple[Place, ...]:
    top = waist or Place("out", below[-1])
    end, start = when(timeline, top), timeline.began(below[0])
    found = {top}
    reading = [tap.site.path for tap in taps if tap.site.path in below and tap.port != "output"]
    reading += [actor.path for actor in actors if actor.reads and timeline.began(actor.path) < end]
    found |= {Place("out", tap.site.path) for tap in taps if tap.site.path in below and tap.port == "output"}
    for path in reading:
        if alive and timeline.began(path) <= start:
            continue
        if not path:
            raise Unfit("an edit at the output of the whole model reads the model's input, which is not read again")
        found.add(_entering(timeline, path))
    return tuple(sorted(found, key=lambda place: when(timeline, place)))


def _entering(timeline: Timeline, path: str) -> Place:
    """What enters a module; where that is what the block before it gave, that block's answer."""
    given = timeline.calls[path].given
    earlier = [block for block in timeline.blocks if timeline.ended(block) < timeline.began(path)]
    return Place("out", earlier[-1]) if earlier and _same(given, main(timeline.calls[earlier[-1]].out)) else Place("in", path)


def _tail(model: nn.Module, timeline: Timeline, actors: list[Actor]) -> tuple[str, ...]:
    """The last linear layer, and a dropout right before it, if all that trains or acts does so there."""
    paths = {actor.path for actor in actors}
    if len(paths) != 1 or (path := paths.pop()) not in timeline.calls:
        return ()
    call, given, answer = timeline.calls[path], timeline.calls[path].given, main(timeline.calls[""].out)
    later = [other for other, one in timeline.calls.items() if one.began > call.began]
    if not hasattr(model.get_submodule(path), "in_features") or later or call.times > 1:
        return ()
    if not timeline.holds_rows(path) or answer.dim() != 2 or len(answer) != timeline.rows:
        return ()
    just = [other for other, one in timeline.calls.items() if one.ended == call.began - 1]
    drops = [other for other in just if isinstance(model.get_submodule(other), nn.Dropout) and timeline.calls[other].times == 1
             and _same(timeline.calls[other].given, given)]
    return (*drops[-1:], path)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether they are the same numbers in the same place; tensors without numbers have places too."""
    if one is None or other is None or one.shape != other.shape:
        return False
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata and one.storage_offset() == other.storage_offset()

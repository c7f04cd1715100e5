"""Rows as they were read, and where each came from.

A row is named by its file and its number. Rows are counted from 1; a header and blank lines are not counted.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from thrifty.core.errors import BadData
from thrifty.data.zipped import Entry

Table = dict[str, list[Any]]
"""Column name -> values; every column has the same length."""

SHOWN = 10
"""How many rows or pairs an error spells out before it counts the rest."""

FILES = 100
"""How many files: each has to be found and mended by itself, where rows of one table often share one fault."""


class Place(NamedTuple):
    """Where a row lies: the file's name and the row's number in it, or None where the file itself is the row."""

    file: str
    row: int | None

    def __str__(self) -> str:
        return self.file if self.row is None else f"{self.file} row {self.row}"


@dataclass
class Rows:
    """One split, or one file of it: columns, and for every row its place.

    ``class_names`` gives the names behind integer classes where the file declares them, ``folder`` is what relative
    image paths are relative to, ``unreadable`` lists rows that never became a row, ``notes`` what a reader had to decide,
    ``keys`` one digest per row of the content a model would see (filled once the roles are known), ``groups`` what rows have in
    common that must stay in one split, where that is more than their content.
    """

    table: Table
    places: list[Place]
    class_names: dict[str, list[str]] = field(default_factory=dict)
    folder: Entry | None = None
    unreadable: list[tuple[Place, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.places)

    def take(self, indices: Sequence[int]) -> Rows:
        """The rows at ``indices``, in that order."""
        return Rows(
            {name: [values[i] for i in indices] for name, values in self.table.items()},
            [self.places[i] for i in indices],
            self.class_names,
            self.folder,
            keys=[self.keys[i] for i in indices] if self.keys else [],
            groups=[self.groups[i] for i in indices] if self.groups else [],
        )


@dataclass
class Given:
    """Everything a source holds: its splits under their canonical names, and what the record says of it."""

    kind: str
    name: str
    splits: dict[str, Rows]
    files: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Faults:
    """Rows that cannot be used. They are raised together, or left out and recorded."""

    def __init__(self) -> None:
        self.found: list[tuple[Place, str]] = []
        self.shown = SHOWN

    def add(self, place: Place, reason: str) -> None:
        """Remember that the row at ``place`` cannot be used because of ``reason``."""
        self.found.append((place, reason))

    def settle(self, skip: bool) -> None:
        """Go on if there is nothing to say or ``skip`` allows it.

        Raises: BadData naming rows with file, number and reason (ten, or a hundred files), and how many more there are.
        """
        if self.found and not skip:
            count = len(self.found)
            raise BadData(
                f"{count} {'row' if count == 1 else 'rows'} cannot be used:\n"
                + spell((f"{place}: {reason}" for place, reason in self.found), self.shown)
                + "\nCorrect them, or leave them out with skip_bad=True (--skip-bad); they are then recorded."
            )

    def record(self) -> list[dict[str, Any]]:
        """The faults as plain JSON."""
        return [{"file": place.file, "row": place.row, "reason": reason} for place, reason in self.found]


def spell(lines: Iterable[str], shown: int = SHOWN) -> str:
    """The first ``lines``, indented, and how many more there are."""
    lines = list(lines)
    more = [f"  … and {len(lines) - shown} more"] if len(lines) > shown else []
    return "\n".join([f"  {line}" for line in lines[:shown]] + more)


def gather(name: str, records: Iterable[Any]) -> Rows:
    """Row dicts as columns. A key that a row lacks is None there; a record that is not a dict is unreadable."""
    rows = Rows({}, [])
    kept: list[dict[str, Any]] = []
    for number, record in enumerate(records, 1):
        place = Place(name, number)
        if isinstance(record, dict):
            kept.append(record)
            rows.places.append(place)
        else:
            rows.unreadable.append((place, f"is {type(record).__name__}, not a row of named values"))
    header = list(dict.fromkeys(str(key) for record in kept for key in record))
    rows.table = {key: [record.get(key) for record in kept] for key in header}
    return rows


def from_columns(name: str, table: dict[str, Any]) -> Rows:
    """A table of columns, checked for equal length.

    Raises: BadData when columns differ in length.
    """
    lengths = {key: len(values) for key, values in table.items()}
    if len(set(lengths.values())) > 1:
        raise BadData(f"{name}: the columns have different lengths: {lengths}.")
    count = next(iter(lengths.values()), 0)
    return Rows({str(key): list(values) for key, values in table.items()}, [Place(name, i + 1) for i in range(count)])


def join(parts: Sequence[Rows]) -> Rows:
    """The shards of one split, one after the other.

    Raises: BadData when a shard has other columns than the first.
    """
    first = parts[0]
    for part in parts[1:]:
        if set(part.table) != set(first.table):
            raise BadData(
                f"{part.places[0].file} has the columns {sorted(part.table)}, "
                f"{first.places[0].file} of the same split has {sorted(first.table)}."
            )
    return Rows(
        {name: [value for part in parts for value in part.table[name]] for name in first.table},
        [place for part in parts for place in part.places],
        first.class_names,
        first.folder,
        [bad for part in parts for bad in part.unreadable],
        [note for part in parts for note in part.notes],
    )

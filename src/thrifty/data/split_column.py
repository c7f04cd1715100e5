"""One table whose own column says which split each row belongs to."""
from __future__ import annotations

from collections.abc import Collection

from thrifty.core.errors import BadData, nearest
from thrifty.data.rows import SHOWN, Given, Rows
from thrifty.data.splitnames import ALIASES, SPLITS, canonical


def divide_by_column(given: Given, taken: Collection[str]) -> None:
    """Put the rows of a single table into the splits that its column "split" names. A column of that name which holds no name of a
    split, or that is ``taken`` for something else, is a column like any other.

    Raises: BadData where it names splits in some rows and something else in others.
    """
    if set(given.splits) != {""}:
        return
    rows = given.splits[""]
    column = next((name for name in rows.table if name.lower() == "split" and name not in taken), None)
    if column is None:
        return
    values = rows.table[column]
    meant = [canonical(str(value).strip()) for value in values]
    if not any(meant):
        return
    if odd := [(place, value) for place, value, split in zip(rows.places, values, meant, strict=True) if split is None]:
        listed = "; ".join(f"{place}: {value!r}" for place, value in odd[:SHOWN])
        raise BadData(f"the column {column!r} says which split a row belongs to, but in {len(odd)} rows it names none: {listed}."
                      + nearest(str(odd[0][1]), ALIASES))
    given.splits = {split: _take(rows, column, [i for i, name in enumerate(meant) if name == split])
                    for split in SPLITS if split in meant}
    first = next(iter(given.splits.values()))
    first.unreadable, first.notes = rows.unreadable, rows.notes
    given.notes.append(f"the column {column!r} says which split each row belongs to.")


def _take(rows: Rows, column: str, indices: list[int]) -> Rows:
    part = rows.take(indices)
    del part.table[column]
    return part

"""Fewer rows on purpose: k of every class, or any n."""
from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.data.rows import Rows, Table


def few(table: Table, shots: int, seed: int = 0) -> Table:
    """``shots`` rows of every class of ``table``, drawn with ``seed``, in the order of ``table``.

    Raises: NoSuchSetting for fewer than one shot; BadData when ``table`` has no classes or one has too few rows.
    """
    check_shots(shots)
    kept = pick(table.get("label", []), shots, seed)
    return {name: [values[i] for i in kept] for name, values in table.items()}


def draw_shots(rows: Rows, shots: int, seed: int, scarce: bool = False) -> Rows:
    """``shots`` of ``rows`` of every class, in their order. Where rows are ``scarce``, classes with fewer give what they have.

    Raises: BadData as `few`.
    """
    return rows.take(pick(rows.table.get("label", []), shots, seed, scarce))


def check_shots(shots: int | None) -> None:
    """Raises: NoSuchSetting unless ``shots`` is None or a whole number of at least 1."""
    if shots is not None and (not isinstance(shots, int) or isinstance(shots, bool) or shots < 1):
        raise NoSuchSetting(f"shots must be a whole number of at least 1, not {shots!r}.")


def pick(labels: Sequence[Any], shots: int, seed: int, scarce: bool = False) -> list[int]:
    """Places of ``shots`` rows of every class, drawn with ``seed``, in order.

    Raises: BadData where there are no classes; or one has too few rows, unless they may be ``scarce``.
    """
    if not labels or not all(isinstance(label, int) for label in labels):
        raise BadData("few-shot sampling needs a column 'label' of class indices; this table has none.")
    rows: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        rows.setdefault(label, []).append(i)
    short = {label: len(rows[label]) for label in sorted(rows) if len(rows[label]) < shots}
    if short and not scarce:
        raise BadData(f"{shots} rows of every class were asked for; these have fewer (class index: rows): {short}.")
    generator = random.Random(seed)
    return sorted(i for label in sorted(rows) for i in generator.sample(rows[label], min(shots, len(rows[label]))))


def check_limit(limit: int | None) -> None:
    """Raises: NoSuchSetting unless ``limit`` is None or a whole number of at least 1."""
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise NoSuchSetting(f"limit must be a whole number of at least 1, not {limit!r}.")


def draw(rows: Rows, limit: int, seed: int) -> Rows:
    """At most ``limit`` of ``rows``, drawn with ``seed``, in their order."""
    if len(rows) <= limit:
        return rows
    return rows.take(sorted(random.Random(seed).sample(range(len(rows)), limit)))

"""Texts that train one task and test another: a test of what was seen, if under another label."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from thrifty.data.dataset import Dataset
from thrifty.data.leaks import digest, fold
from thrifty.data.rows import Table

TEXTS = ("text", "text_pair", "source", "tokens")  # roles whose equality tells that rows are about the same thing


def find_overlap(parts: Mapping[str, Dataset]) -> list[dict[str, Any]]:
    """How many test rows of one ``task`` have a text that is in the training rows of the ``other``, for pairs that have such rows.

    Asking opens no test split.
    """
    trained = {name: set(keys(part.splits["train"])) for name, part in parts.items()}
    tested = {name: list(keys(part._test or {})) for name, part in parts.items()}
    counts = ((name, other, sum(key in trained[other] for key in tested[name]))
              for name in parts for other in parts if other != name)
    return [{"task": name, "other": other, "rows": rows} for name, other, rows in counts if rows]


def keys(table: Table) -> Iterator[str]:
    """One digest a row of its texts."""
    columns = [table[role] for role in TEXTS if role in table]
    return (digest([fold(value) for value in row]) for row in zip(*columns, strict=True))

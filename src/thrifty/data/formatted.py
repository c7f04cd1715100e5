"""Rows as a format writes them, for a model that reads and writes text."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.core.errors import BadData
from thrifty.data.numbering import number_labels
from thrifty.data.rows import Faults, Rows, Table
from thrifty.formats.classes import Classes
from thrifty.formats.format import Format, Unwritable
from thrifty.formats.passages import Answer


def prepare(parts: dict[str, Rows], format: Format, label: list[str] | None, declared: Mapping[str, list[str]], faults: Faults,
            notes: list[str]) -> dict[str, Rows]:
    """Rows that the format can write, with ``choices`` where each has its own, and class numbers where the format names classes.

    ``label`` is the column of the labels, ``declared`` what files say of names of classes. Other rows become faults.
    """
    parts = {split: keep_writable(rows, format, faults) for split, rows in parts.items()}
    if isinstance(format, Classes) and format.labels:
        parts = number_labels(parts, format, declared.get((label or [""])[0]), faults, notes)
    return parts


def keep_writable(rows: Rows, format: Format, faults: Faults) -> Rows:
    """Try every row."""
    kept, choices, groups = [], [], []
    for i, row in enumerate(records(rows)):
        row.pop("label", None)  # still as it was written
        try:
            format.write(row)
            if isinstance(format, Answer):
                rows.table["references"][i] = format.accept(row["references"])
            choices.append(list(format.options(row)))
            groups.append(format.group(row) or "")
        except Unwritable as why:
            faults.add(rows.places[i], str(why))
            continue
        kept.append(i)
    out = rows.take(kept)
    if format.task == "multiple-choice":
        out.table["choices"] = choices
    out.groups = groups if any(groups) else []
    return out


def write_splits(parts: Mapping[str, Rows], format: Format, record: dict[str, Any]) -> dict[str, Table]:
    """All splits as texts; ``record`` is told the format and what of the training rows it teaches.

    Raises: BadData for a format that teaches none of the training rows.
    """
    tables = {split: write(rows, format, taught=split == "train") for split, rows in parts.items()}
    lessons, rows = len(tables["train"]["target"]), len(parts["train"])
    record["format"] = {"name": format.name, "lessons": lessons, "answers": list(format.options({})) if format.task ==
                        "text-classification" else None}
    if lessons != rows:
        record["decisions"].append(f"the format {format.name} makes {lessons} lessons of the {rows} training rows.")
    return tables


def write(rows: Rows, format: Format, taught: bool) -> Table:
    """The rows as texts: what the format teaches of them, or else every row as it is asked.

    Raises: BadData for a format that teaches none of the rows.
    """
    given = records(rows)
    lessons = list(format.lessons(given)) if taught else [(i, format.write(row, i), format.target(row))
                                                          for i, row in enumerate(given)]
    if not lessons:
        raise BadData(f"{format.name} can train on none of the {len(rows)} training rows.")
    chosen = [number for number, _, _ in lessons]
    source = "source" if isinstance(format, Answer) else "text"
    table: Table = {source: [text for _, text, _ in lessons]}
    for role in ("label", "choices", "references", *format.kept):
        if role in rows.table:
            table[role] = [rows.table[role][i] for i in chosen]
    if rows.groups:
        table["group"] = [rows.groups[i] for i in chosen]
    table["target"] = [target for _, _, target in lessons]
    return table


def write_questions(rows: Rows, format: Format) -> Table:
    """Rows without answers, as they are asked."""
    given = records(rows)
    table: Table = {"source" if isinstance(format, Answer) else "text": [format.write(row, i) for i, row in enumerate(given)]}
    if format.task == "multiple-choice":
        table["choices"] = [list(format.options(row)) for row in given]
    return table | {role: rows.table[role] for role in format.kept}


def records(rows: Rows) -> Sequence[dict[str, Any]]:
    """The rows one by one."""
    return [dict(zip(rows.table, values, strict=True)) for values in zip(*rows.table.values(), strict=True)]

"""Cells into what a task reads: texts, numbers, lists, images. A cell that cannot be used is a fault of its row."""
from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from thrifty.core.errors import BadData
from thrifty.data import images
from thrifty.data.columns import Choice
from thrifty.data.rows import FILES, Faults, Rows, Table
from thrifty.data.zipped import Entry, Member

NAMES = "label_name"
"""The column beside the roles that holds the names of the classes, until the label space is known."""


class Unusable(Exception):
    """Why one row cannot be used."""


def canonise(rows: Rows, choice: Choice, faults: Faults) -> Rows:
    """The rows under their roles' names, each value checked; rows with a fault are left out and reported to ``faults``.

    Labels, tags and answers are still as written: what they mean depends on all rows.

    Raises: BadData when the split lacks a column.
    """
    for place, reason in rows.unreadable:
        faults.add(place, reason)
    split = rows.places[0].file if rows.places else "a split"
    for role, names in choice.columns.items():
        lacking = [name for name in names if name not in rows.table]
        if lacking:
            raise BadData(
                f"{split} has no column {lacking[0]!r}, which is the {role} in the training data; it has "
                f"{sorted(rows.table)}. A split without labels cannot be scored: take it out, or give it the column."
            )
    kept: list[int] = []
    table: Table = {role: [] for role in choice.columns}
    for i, place in enumerate(rows.places):
        cells = {role: [rows.table[name][i] for name in names] for role, names in choice.columns.items()}
        try:
            row = read_row(cells, choice.task, rows.folder, choice.readers)
        except Unusable as why:
            faults.add(place, str(why))
            continue
        kept.append(i)
        for role, value in row.items():
            table[role].append(value)
    if choice.naming in rows.table:
        table[NAMES] = [rows.table[choice.naming][i] for i in kept]
    out = Rows(table, [rows.places[i] for i in kept])
    if "image" not in table:
        return out
    faults.shown = FILES
    return check_images(out, faults)


def read_row(cells: dict[str, list[Any]], task: str, folder: Entry | None,
             readers: Mapping[str, Callable[[Any, str], Any]]) -> dict[str, Any]:
    """One row's values by role; ``readers`` read roles in their own way.

    Raises: Unusable.
    """
    row: dict[str, Any] = {}
    for role, values in cells.items():
        value = values if len(values) > 1 else values[0]
        if role in readers:
            row[role] = readers[role](value, role)
        elif role == "label" and task == "regression":
            row[role] = read_number(value)
        elif role == "image":
            row[role] = find_image(value, folder)
        else:
            row[role] = READ[role](value, role)
    if task == "token-classification" and len(row["tokens"]) != len(row["tags"]):
        raise Unusable(f"has {len(row['tokens'])} tokens but {len(row['tags'])} tags")
    if "target" in row and isinstance(row["target"], list):
        row["target"] = row["target"][0]
    return row


def read_text(value: Any, role: str) -> str:
    """A text that is not blank."""
    if value is None:
        raise Unusable(f"the {role} is missing")
    if not isinstance(value, str):
        raise Unusable(f"the {role} is {type(value).__name__}, not a text")
    if not value.strip():
        raise Unusable(f"the {role} is empty")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Unusable(f"the {role} holds half of a surrogate pair, which is no character") from None
    return value


def read_texts(value: Any, role: str) -> list[str]:
    """A list of texts, none of them blank."""
    if not isinstance(value, list | tuple):
        raise Unusable(f"the {role} column holds {type(value).__name__}, not a list")
    if not value:
        raise Unusable(f"the list of {role} is empty")
    for i, item in enumerate(value):
        if not isinstance(item, str) or not item.strip():
            fact = "empty" if item is None or isinstance(item, str) else f"{type(item).__name__}, not a text"
            raise Unusable(f"item {i + 1} of the {role} is {fact}")
    return list(value)


def read_captions(value: Any, role: str) -> list[str]:
    """Texts about one picture: a list, or one text."""
    return read_texts(value, role) if isinstance(value, list | tuple) else [read_text(value, role)]


def read_target(value: Any, role: str) -> str | list[str]:
    """A text, or a list of references of which the first is the text to learn."""
    return read_texts(value, role) if isinstance(value, list | tuple) else read_text(value, role)


def read_label(value: Any, role: str) -> Any:
    """A class as written: a string (without blanks around it), a whole number or a bool."""
    if value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and math.isnan(value)):
        raise Unusable(f"the {role} is missing")
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int):
        raise Unusable(f"the {role} {value!r} is no class: a class is a string or a whole number")
    return value


def read_tags(value: Any, role: str) -> list[Any]:
    """One class per token."""
    if not isinstance(value, list | tuple):
        raise Unusable(f"the {role} column holds {type(value).__name__}, not a list")
    return [read_label(item, f"tag {i + 1}") for i, item in enumerate(value)]


def read_choices(value: Any, role: str) -> list[str]:
    """Two choices or more: a list, one column each, or the struct {"text": [...], "label": [...]}."""
    if isinstance(value, dict):
        value = value.get("text")
    if isinstance(value, list | tuple):
        value = [str(item) if isinstance(item, int | float) else item for item in value]
    texts = read_texts(value, role)
    if len(texts) < 2:
        raise Unusable("there is only one choice")
    return texts


def read_answers(value: Any, role: str) -> list[str]:
    """Texts of which any is right, one of them, or none: a text, a list, or the struct {"text": [...], ...} of SQuAD."""
    if isinstance(value, dict):
        value = value.get("text")
    if value is None or (isinstance(value, list | tuple) and not value):
        return []
    return read_texts(value, role) if isinstance(value, list | tuple) else [read_text(value, role)]


def read_whole(value: Any, role: str) -> int:
    """A whole number, or the writing of one."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise Unusable(f"the {role} {value!r} is not a number") from None
    if not number.is_integer():
        raise Unusable(f"the {role} {value!r} is not a whole number")
    return int(number)


def read_number(value: Any) -> float:
    """A finite number, or the writing of one."""
    if value is None or value == "":
        raise Unusable("the label is missing")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise Unusable(f"the label {value!r} is not a number") from None
    if not math.isfinite(number):
        raise Unusable(f"the label {value!r} is not a finite number")
    return number


def find_image(value: Any, folder: Entry | None) -> bytes | str:
    """Encoded bytes, or a path made whole by ``folder``, in an archive what lies there; from a struct the bytes, else the path."""
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value.strip():
        raise Unusable("the image is missing" if not value else f"the image is {type(value).__name__}, not bytes or a path")
    if not isinstance(folder, Member):
        return str((folder or Path()) / value)
    inside = folder.find(value)
    if inside is None:
        raise Unusable(f"{value} is no file in the archive, seen from {folder}")
    try:
        return inside.read_bytes()
    except BadData as error:
        raise Unusable(str(error).rstrip(".")) from error


def check_images(rows: Rows, faults: Faults) -> Rows:
    """Decode every image once, so that a broken one is found now and not in the middle of training; keep the digests."""

    def digest(value: bytes | str) -> str | BadData:
        try:
            return images.inspect(value)
        except BadData as error:
            return error

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(digest, rows.table["image"]))
    rows.keys = [str(found) for found in digests]
    good = [i for i, found in enumerate(digests) if isinstance(found, str)]
    for i, found in enumerate(digests):
        if isinstance(found, BadData):
            faults.add(rows.places[i], str(found).rstrip("."))
    return rows.take(good) if len(good) < len(rows) else rows


READ: dict[str, Callable[[Any, str], Any]] = {
    "text": read_text, "text_pair": read_text, "source": read_text, "target": read_target, "references": read_texts,
    "tokens": read_texts, "tags": read_tags, "choices": read_choices, "label": read_label,
    "captions": read_captions,
}  # fmt: skip

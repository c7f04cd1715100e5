"""CSV and TSV, by the standard library's reader in strict mode.

CSV quotes its fields. TSV files come in two habits: quoted like CSV (pandas), or never quoted, with quotation marks as
plain characters (GLUE). A TSV whose every line already has the header's number of fields is read line by line; any other
is read with quotes.
"""
from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from thrifty.core.errors import BadData
from thrifty.data.rows import Place, Rows


def parse_delimited(name: str, data: bytes, separator: str) -> Rows:
    """The rows of a CSV (``separator`` ",") or TSV (tab) file. Cells are strings; a column of JSON lists becomes lists.

    Raises: BadData for bytes that are not UTF-8, no header, a doubled or empty header, or a quote that never closes.
    """
    text = decode(name, data)
    notes = []
    first = text.lstrip("\r\n").split("\n", 1)[0]
    other = next((mark for mark in ";\t|" if mark in first), None)
    if separator == "," and "," not in first and other:
        separator = other
        notes.append(f"{name}: the columns are separated by {other!r}, since the header has no comma.")
    quoted = separator != "\t" or not plain_lines(text)
    records = iterate(name, text, separator, quoted)
    header = name_columns(name, next(records, (0, []))[1])
    rows = Rows({column: [] for column in header}, [], notes=notes)
    for number, cells in records:
        place = Place(name, number)
        if isinstance(cells, str):
            rows.unreadable.append((place, cells))
        elif len(cells) != len(header):
            rows.unreadable.append((place, f"has {len(cells)} fields where the header has {len(header)}"))
        else:
            rows.places.append(place)
            for column, cell in zip(header, cells, strict=True):
                rows.table[column].append(cell if quoted else unwrap(cell))
    rows.table = {column: read_lists(cells) for column, cells in rows.table.items()}
    return rows


def decode(name: str, data: bytes) -> str:
    """UTF-8 text, with or without a byte order mark.

    Raises: BadData naming the line of the first byte that is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BadData(f"{name} is not UTF-8 text (line {line}, byte {error.start}): save it as UTF-8.") from error


def plain_lines(text: str) -> bool:
    """Whether every line, cut at its tabs with quotes as plain characters, has as many fields as the first."""
    lines = [line for line in text.replace("\r\n", "\n").split("\n") if line]
    return len({line.count("\t") for line in lines}) <= 1


def iterate(name: str, text: str, separator: str, quoted: bool) -> Iterator[tuple[int, list[str] | str]]:
    """(row number, cells) with the header as row 0; instead of cells a sentence where a row cannot be parsed."""
    source = io.StringIO(text, newline="")
    number = 0
    with wide_fields():
        reader = csv.reader(source, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "end of data" in str(error):
                    place = f"{name} row {number} (line {line})"
                    raise BadData(f"{place}: a quotation mark opens here and never closes.") from error
                yield number, f"cannot be parsed (line {line}: {error})"
            else:
                if not cells:
                    continue
                yield number, cells
            number += 1


@contextmanager
def wide_fields() -> Iterator[None]:
    """Lift the standard library's limit of 131,072 characters in a cell while reading."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def name_columns(name: str, header: list[str] | str) -> list[str]:
    """The header, stripped; a column without a name (a saved index) is called "column N".

    Raises: BadData for a missing header or a name that occurs twice.
    """
    if not header or isinstance(header, str):
        raise BadData(f"{name} is empty: its first line must name the columns.")
    names = [cell.strip() or f"column {i + 1}" for i, cell in enumerate(header)]
    doubled = sorted({column for column in names if names.count(column) > 1})
    if doubled:
        raise BadData(f"{name}: the header names {doubled} more than once.")
    return names


def unwrap(cell: str) -> str:
    """A cell that was written with quotes around it, without them."""
    inside = cell[1:-1]
    wrapped = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inside.replace('""', "")
    return inside.replace('""', '"') if wrapped else cell


def read_lists(cells: list[str]) -> list[Any]:
    """The cells as lists if every one that is not empty is a JSON list; otherwise as they are."""
    if not any(cells) or not all(cell.startswith("[") and cell.endswith("]") for cell in cells if cell):
        return cells
    try:
        return [json.loads(cell) if cell else None for cell in cells]
    except json.JSONDecodeError:
        return cells

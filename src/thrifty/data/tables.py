"""One file of rows: CSV, TSV, JSON lines, JSON, Parquet."""
from __future__ import annotations

import hashlib
import json
from typing import Any

from thrifty.core.errors import BadData, Missing, nearest
from thrifty.data.delimited import decode, parse_delimited
from thrifty.data.rows import Rows, from_columns, gather
from thrifty.data.splitnames import canonical
from thrifty.data.zipped import Entry

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")


def read_file(path: Entry, name: str) -> tuple[dict[str, Rows], dict[str, Any]]:
    """What one file holds, and its record (name, sha256, rows).

    The rows stand under the key "" unless the file is a JSON object of splits; then under the splits' names.
    ``name`` is what errors call the file. Relative image paths are relative to the file's folder.

    Raises: BadData for a file that is missing, empty, of an unknown format, or not what its name says.
    """
    data = read_bytes(path)
    parts = parse(name, path.suffix.lower(), data)
    for rows in parts.values():
        rows.folder = path.parent
        if not rows.places and not rows.unreadable:
            raise BadData(f"{name} holds no rows.")
    return parts, {"name": name, "sha256": hashlib.sha256(data).hexdigest(), "rows": sum(map(len, parts.values()))}


def read_bytes(path: Entry) -> bytes:
    """What a file holds.

    Raises: BadData for one that cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadData(f"{path.name} cannot be read: {error.strerror}.") from error


def parse(name: str, suffix: str, data: bytes) -> dict[str, Rows]:
    """The bytes of a file called ``name`` as rows, by its ``suffix``."""
    if not data.strip():
        raise BadData(f"{name} is empty.")
    if suffix in (".csv", ".tsv"):
        return {"": parse_delimited(name, data, "," if suffix == ".csv" else "\t")}
    if suffix in (".jsonl", ".ndjson"):
        return {"": parse_lines(name, decode(name, data))}
    if suffix == ".json":
        return parse_json(name, decode(name, data))
    if suffix == ".parquet":
        return {"": parse_parquet(name, data)}
    raise BadData(f"{name}: the format {suffix or 'without a suffix'} is unknown.{nearest(suffix, SUFFIXES)}")


def parse_lines(name: str, text: str) -> Rows:
    """JSON lines: one object per line, blank lines skipped."""
    records: list[Any] = []
    broken: dict[int, str] = {}
    for line in text.split("\n"):
        if line.strip():
            try:
                records.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                broken[len(records) + 1] = f"is not JSON ({error})"
                records.append(None)
    rows = gather(name, records)
    rows.unreadable = [(place, broken.get(place.row or 0, reason)) for place, reason in rows.unreadable]
    return rows


def parse_json(name: str, text: str) -> dict[str, Rows]:
    """A list of rows, an object of columns, an object of splits, {"data": rows}, or JSON lines in a ``.json`` file.

    Raises: BadData for anything else.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if str(error).startswith("Extra data"):
            return {"": parse_lines(name, text)}
        raise BadData(f"{name} is not JSON: {error}.") from error
    if isinstance(value, dict) and set(value) == {"data"}:
        value = value["data"]
    if isinstance(value, list):
        return {"": gather(name, value)}
    if isinstance(value, dict) and value and all(isinstance(part, list) for part in value.values()):
        if all(canonical(key) for key in value):
            return {key: gather(f"{name}[{key}]", part) for key, part in value.items()}
        return {"": from_columns(name, value)}
    raise BadData(f"{name} must hold a list of rows, an object of columns (lists of equal length), or an object of splits.")


def parse_parquet(name: str, data: bytes) -> Rows:
    """A Parquet file, with the class names that `datasets` leaves in its metadata.

    Raises: Missing without pyarrow; BadData for a file that is not Parquet or is cut short.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise Missing(f'{name} is Parquet, which needs pyarrow: pip install "thrifty[tables]".') from error
    try:
        table = parquet.read_table(pa.BufferReader(data))
        rows = from_columns(name, {column: table.column(column).to_pylist() for column in table.column_names})
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise BadData(f"{name} is not a readable Parquet file: {error}.") from error
    declared = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    rows.class_names = find_class_names((declared.get("info") or {}).get("features") or {})
    return rows


def find_class_names(features: dict[str, Any]) -> dict[str, list[str]]:
    """Column -> class names, from the JSON form of `datasets.Features`, where a column or its items are class labels."""
    found = {}
    for column, feature in features.items():
        while isinstance(feature, dict | list) and "names" not in feature:
            feature = feature[0] if isinstance(feature, list) else feature.get("feature")
        if isinstance(feature, dict) and feature.get("_type", "ClassLabel") == "ClassLabel":
            names = feature["names"]
            names = [names[str(i)] for i in range(len(names))] if isinstance(names, dict) else names
            found[column] = [str(name) for name in names]
    return found

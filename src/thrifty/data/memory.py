"""Tables that a Python user already holds."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from thrifty.core.errors import BadData, nearest
from thrifty.data.rows import Given, Rows, from_columns, gather
from thrifty.data.splitnames import ALIASES, canonical, name_splits


def read_memory(source: Any) -> Given:
    """A dict of splits, or one table of which the splits are then carved.

    A table is a dict of columns, a list of row dicts, a pandas DataFrame, a pyarrow Table or a `datasets.Dataset`.

    Raises: BadData for anything else, or for a dict of tables whose keys are not splits.
    """
    if isinstance(source, Mapping) and source and all(is_table(part) for part in source.values()):
        for name in source:
            if not canonical(name):
                raise BadData(f"{name!r} is not the name of a split.{nearest(name, ALIASES)}")
        meant, _ = name_splits(source, "the dict")
        splits = {split: read_rows(name, source[name]) for name, split in meant.items()}
    elif is_table(source) or (isinstance(source, Mapping) and source):
        splits = {"": read_rows("table", source)}
    else:
        raise BadData(
            f"cannot read {type(source).__name__}: give a path, a hub id, 'cityline', a dict of splits, "
            "a dict of columns, or a list of row dicts."
        )
    for split, rows in splits.items():
        if not rows.places and not rows.unreadable:
            raise BadData(f"the {split or 'given'} table holds no rows.")
    files = [{"name": rows.places[0].file if len(rows) else split, "sha256": digest(rows), "rows": len(rows)}
             for split, rows in splits.items()]  # fmt: skip
    return Given("memory", type(source).__name__, splits, files)


def is_table(value: Any) -> bool:
    """Whether ``value`` holds rows: a list of dicts, a dict of lists, or one of the known table classes."""
    if isinstance(value, Mapping):
        return bool(value) and all(isinstance(column, list | tuple) or hasattr(column, "tolist") for column in value.values())
    return holds_rows(value) or hasattr(value, "to_pydict") or hasattr(value, "column_names") or hasattr(value, "iterrows")


def holds_rows(value: Any) -> bool:
    """Whether ``value`` is a list of row dicts."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(row, Mapping) for row in value)


def read_rows(name: str, value: Any) -> Rows:
    """One table as rows. ``name`` is what errors call it."""
    if isinstance(value, Mapping):
        if not is_table(value):
            kinds = {str(key): type(column).__name__ for key, column in value.items()}
            raise BadData(f"{name}: every column must be a list or an array; these are given: {kinds}.")
        return from_columns(name, {key: plain(column) for key, column in value.items()})
    if isinstance(value, list | tuple):
        return gather(name, ({key: plain(cell) for key, cell in row.items()} for row in value))
    if hasattr(value, "features"):
        from thrifty.data.hub import read_dataset

        return read_dataset(name, value)
    if hasattr(value, "to_pydict"):
        return from_columns(name, value.to_pydict())
    return from_columns(name, value.to_dict("list"))


def plain(value: Any) -> Any:
    """A cell or column without numpy or torch in it: their numbers would not pass for Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def digest(rows: Rows) -> str:
    """sha256 of the rows' values, for a table that has no file. Bytes count by their own sha256."""
    whole = hashlib.sha256(json.dumps(list(rows.table)).encode())
    for values in zip(*rows.table.values(), strict=True):
        whole.update(json.dumps(values, sort_keys=True, default=stand_in).encode())
    return whole.hexdigest()


def stand_in(value: Any) -> str:
    """What stands for a value that JSON does not know."""
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)

"""Several datasets as one, for a model that learns them together: a row is a task's name and a row of that task's dataset."""
from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from thrifty.core.errors import BadData, NoSuchSetting, ThriftyError, nearest
from thrifty.data.dataset import Dataset
from thrifty.data.memory import is_table
from thrifty.data.overlap import find_overlap
from thrifty.data.rows import Table
from thrifty.data.sharing import share_classes
from thrifty.data.splitnames import canonical

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Several(Dataset):
    """One dataset for each task, by the task's name, with all test splits behind one door.

    A split is {"task": names, "row": rows}, where a row is {role: value} with the roles of its own task. ``columns`` and
    ``labels`` are by task, and so are ``record["tasks"]`` and ``record["content"]``.
    """

    def __init__(self, parts: Mapping[str, Dataset]) -> None:
        check_names(parts)
        self.parts = dict(parts)
        labels: Any = {name: part.labels for name, part in parts.items()}
        columns: Any = {name: part.columns for name, part in parts.items()}
        splits = {split: join({name: part.splits[split] for name, part in parts.items()}) for split in ("train", "validation")}
        super().__init__(splits, columns, "several", labels, self._describe())
        self._test_rows = sum(part.test_rows for part in parts.values())

    @property
    def kinds(self) -> dict[str, str]:
        """What each task is: "text-classification", "regression", ..."""
        return {name: part.task for name, part in self.parts.items()}

    def test(self) -> Table:
        """The test splits of all tasks.

        Raises: BadData on the second call, or if a task has none.
        """
        found = {}
        for name, part in self.parts.items():
            with naming(name):
                found[name] = part.test()
        return join(found)

    def _describe(self) -> dict[str, Any]:
        records = {name: part.record for name, part in self.parts.items()}
        rows = {split: sum(record["rows"][split] for record in records.values()) for split in ("train", "validation", "test")}
        return {"source": {"kind": "several", "name": ", ".join(records)}, "task": "several", "rows": rows,
                "overlap": find_overlap(self.parts),
                "content": {name: record["content"] for name, record in records.items()}, "tasks": records}


def is_several(source: Any) -> bool:
    """Whether ``source`` names datasets by task, and is not itself a dict of splits or of columns."""
    if not isinstance(source, Mapping) or not source:
        return False
    if all(is_table(part) for part in source.values()) and (len(source) == 1 or any(map(canonical, source))):
        return False
    return all(isinstance(part, (str, os.PathLike, Dataset)) or _holds_tables(part) for part in source.values())


def _holds_tables(part: Any) -> bool:
    return is_table(part) or (isinstance(part, Mapping) and bool(part) and all(is_table(inner) for inner in part.values()))


def read_several(sources: Mapping[str, Any], read: Callable[[str, Any], Dataset], one_head: bool = False) -> Several:
    """``sources`` by task, each read by ``read(name, source)``, or a `Dataset` already; with ``one_head`` the classes of those that
    are of one kind are numbered alike.

    Raises: NoSuchSetting for names that tasks cannot have; what ``read`` raises, with the task's name before it; Unfit for
        classes that ``one_head`` cannot have together.
    """
    check_names(sources)
    parts = {}
    for name, source in sources.items():
        with naming(name):
            parts[name] = source if isinstance(source, Dataset) else read(name, source)
    if one_head and len({(part.task, part.format) for part in parts.values()}) == 1:
        share_classes(parts)
    return Several(parts)


def check_names(names: Iterable[str]) -> None:
    """Raises: NoSuchSetting for a name that a task cannot have: none, one with odd characters, or that of a split."""
    for name in names:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise NoSuchSetting(f"a task's name is letters, digits, '_' and '-', not {name!r}")
        if canonical(name):
            raise NoSuchSetting(f"{name!r} is the name of a split, not of a task. Several tasks are given by their names, as in "
                                '{"rte": ..., "mrpc": ...}; the splits of one are tables, or files in one folder')


@contextlib.contextmanager
def naming(task: str) -> Iterator[None]:
    """An error in the block says which task it is about."""
    try:
        yield
    except ThriftyError as error:
        raise type(error)(f"task {task!r}: {error}") from error


def each(value: Any, names: Sequence[str], setting: str) -> dict[str, Any]:
    """What a setting says of each task: ``value`` of all, or {task: value}, and None of those that it leaves out.

    Raises: NoSuchSetting for a task that there is not.
    """
    if not isinstance(value, Mapping):
        return dict.fromkeys(names, value)
    _refuse_unknown(value, names, setting)
    return {name: value.get(name) for name in names}


def columns_of(columns: Mapping[str, Any] | None, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Columns by task. A key is a role for all tasks, "task.role", or a task with a mapping of its own.

    Raises: NoSuchSetting for a task that there is not.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in (columns or {}).items():
        task, dot, role = key.partition(".")
        if not dot and not isinstance(value, Mapping):
            for told in found.values():
                told[key] = value
            continue
        _refuse_unknown([task], names, "columns")
        found[task] |= {role: value} if dot else value
    return found


def words_of(words: Mapping[str, Any] | None, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Words that spell classes, by task. A key is a class of all tasks, "task.class", or a task with a mapping of its own."""
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    for key, value in (words or {}).items():
        task, _, label = key.partition(".")
        if isinstance(value, Mapping):
            _refuse_unknown([key], names, "words")
            found[key] |= value
        elif label and task in names:
            found[task][label] = value
        else:
            for told in found.values():
                told[key] = value
    return found


def _refuse_unknown(told: Iterable[str], names: Sequence[str], setting: str) -> None:
    for name in told:
        if name not in names:
            raise NoSuchSetting(f"{setting} speaks of a task {name!r}, which is none of the datasets." + nearest(name, names, 40))


def join(tables: Mapping[str, Table]) -> Table:
    """Tables of columns by task as one table of tasks and rows."""
    rows = {name: rows_of(table) for name, table in tables.items()}
    return {"task": [name for name, part in rows.items() for _ in part], "row": [row for part in rows.values() for row in part]}


def rows_of(table: Table) -> list[dict[str, Any]]:
    """A table of columns as rows {role: value}."""
    return [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]


def columns_from(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The opposite of ``rows_of``.

    Raises: BadData when rows of one table have different roles.
    """
    if any(row.keys() != rows[0].keys() for row in rows):
        raise BadData("the rows of one task have different columns")
    return {role: [row[role] for row in rows] for role in rows[0]}

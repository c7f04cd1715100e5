"""Which column of a table is which field of a format."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from thrifty import formats
from thrifty.core.errors import BadData, NoSuchSetting, nearest
from thrifty.data.candidates import REFERENCES, TARGETS, find_pair, label_candidates, naming_column, without
from thrifty.data.columns import Choice, weigh_label
from thrifty.data.describe import Look, look
from thrifty.data.guess import describe, how_to_say, only
from thrifty.data.rows import Table
from thrifty.data.values import read_answers, read_label, read_number, read_text, read_texts, read_whole
from thrifty.formats.format import Format
from thrifty.formats.own import Own
from thrifty.formats.passages import Answer

READERS: dict[str, Callable[[Any, str], Any]] = {"text": read_text, "texts": read_texts, "whole": read_whole}
Named = dict[str, list[str]]


def settle(name: str, task: str | None, words: Mapping[str, str] | None, table: Table, columns: Mapping[str, Any] | None,
           generation: str) -> tuple[Format, Choice]:
    """The format called ``name`` and its columns; what a text of the user's own is for is told by the labels.

    Raises: NoSuchSetting, BadData: see `thrifty.formats.find` and `decide`.
    """
    format = formats.find(name, task=task, words=words)
    if not format.taught:
        raise BadData(f"{format.name} is there to judge by, not to train on: t5:wsc teaches the same and goes with it.")
    choice = decide(table, format, columns, task if task is not None and task.endswith("generation") else generation)
    if isinstance(format, Own) and task is None and weigh_label(choice.columns, look(table), table) == "regression":
        return settle(name, "regression", words, table, columns, generation)
    return format, choice


def decide(table: Table, format: Format, columns: Mapping[str, Any] | None, generation: str) -> Choice:
    """Which column of ``table`` each field is read from, and which holds the answer.

    A field is the column of its name, or what was said; a single text, or a pair whose names belong together, needs no name.

    Raises: NoSuchSetting for a field that the format does not have; BadData for a column that is missing or not clear.
    """
    role = "references" if isinstance(format, Answer) else "label"
    view, found = look(table), check_said(table, format, role, columns or {})
    if role not in found:
        found[role] = [find_answer(table, view, found, format)]
    naming = naming_column(found[role][0], view)
    fill_fields(format, {name: column for name, column in view.items() if name != naming}, found)
    task = generation if role == "references" else format.task
    readers: dict[str, Any] = {field.name: READERS[field.kind] for field in format.fields if field.name in found}
    seen = tuple(readers)
    readers[role] = {"regression": read_gold, "generation": read_answers}.get(format.task, read_label)
    used = {name for names in found.values() for name in names}
    return Choice(task, f"{task} because the format {format.name} was asked for.", found, naming,
                  [name for name in table if name not in used and name != naming], readers, seen)


def check_said(table: Table, format: Format, role: str, columns: Mapping[str, Any]) -> Named:
    """Field -> column, as the user named them.

    Raises: NoSuchSetting, BadData.
    """
    known = [*(field.name for field in format.fields), role]
    for name, column in columns.items():
        if name not in known:
            raise NoSuchSetting(f"the format {format.name} has no field {name!r}.{nearest(name, known)}")
        if not isinstance(column, str) or column not in table:
            raise BadData(f"there is no column {column!r} to be the {name}.{nearest(str(column), table)}")
    return {name: [column] for name, column in columns.items()}


def find_answer(table: Table, view: Mapping[str, Look], found: Named, format: Format) -> str:
    """The column that holds the answer.

    Raises: BadData if none is clear.
    """
    free = {name: column for name, column in without(dict(view), found).items()
            if name not in {field.name for field in format.fields}}
    if isinstance(format, Answer):
        named = [name for name in free if name.lower() in TARGETS | REFERENCES | {"answers"}]
        return only("references", [[name] for name in named], dict(view))[0]
    candidates = label_candidates(free, found, table, format.task)
    return only("label", [[name] for name in candidates], dict(view))[0]


def fill_fields(format: Format, view: Mapping[str, Look], found: Named) -> None:
    """Every field's column.

    Raises: BadData for one that is needed and has none.
    """
    free = without(dict(view), found)
    lower = {name.lower(): name for name in reversed(free)}
    for field in format.fields:
        match = next((lower[name] for name in (field.name.lower(), *field.others) if name in lower), None)
        if field.name not in found and match is not None:
            found[field.name] = [match]
    free = without(dict(view), found)
    missing = [field for field in format.fields if field.needed and field.name not in found]
    texts = [] if isinstance(format, Own) else [name for name, column in free.items() if column.is_text]
    alone = len(missing) == len([field for field in format.fields if field.needed and field.kind == "text"])
    if alone and len(missing) == 1 and len(texts) == 1:
        found[missing[0].name] = texts
    elif alone and len(missing) == 2 and (pair := find_pair(texts)):
        found[missing[0].name], found[missing[1].name] = [pair[0]], [pair[1]]
    elif missing:
        name = missing[0].name
        raise BadData(f"no column is clearly the {name} that the format {format.name} reads, among {describe(dict(free))}. "
                      f"{how_to_say(name, 'NAME')}.")


def read_gold(value: Any, role: str) -> float:
    """A number, to be answered."""
    return read_number(value)

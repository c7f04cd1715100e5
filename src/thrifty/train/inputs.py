"""New rows to answer: what a model sees of them, without what it must say."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thrifty.core.errors import BadData, nearest
from thrifty.data.columns import Choice
from thrifty.data.fields import READERS
from thrifty.data.folders import IMAGES
from thrifty.data.formatted import write_questions
from thrifty.data.read import open_source
from thrifty.data.rows import Faults, Rows, Table, from_columns
from thrifty.data.tasks import TASKS
from thrifty.data.values import canonise
from thrifty.formats import Format


def read_inputs(source: Any, task: str, columns: Mapping[str, str], split: str | None = None,
                format: Format | None = None) -> Table:
    """The columns that ``task`` sees, by role; with a format, what it writes of its fields.

    ``columns`` says which column played which role in training.

    Raises:
        BadData: a column is missing, a row cannot be used, or there are several splits and none was named.
    """
    if task == "navigation":
        from thrifty.navigation.reading import read_split

        return read_split(source, split)
    if task == "image-classification" and split is None and (pictures := loose_pictures(source)):
        return {"image": pictures}
    rows = choose_split(open_source(source).splits, split)
    chosen = {}
    fields = {field.name: READERS[field.kind] for field in format.fields} if format else {}
    for role in fields or TASKS[task].seen:
        if role not in columns:
            continue
        names = columns[role].split(",") if role == "choices" else [columns[role]]
        if any(name not in rows.table for name in names):
            names = [role]  # data that speaks of roles is understood too
        if names[0] not in rows.table:
            raise BadData(f"the {role} was in column {columns[role]!r} when this adapter was trained, but there is no such column "
                          f"here.{nearest(columns[role], rows.table)}")
        chosen[role] = names
    faults = Faults()
    found = canonise(rows, Choice("prediction", "", chosen, readers=fields), faults)
    faults.settle(False)
    if not len(found):
        raise BadData("there are no rows to answer")
    return write_questions(found, format) if format else found.table


def loose_pictures(source: Any) -> list[str]:
    """The pictures that lie directly in a folder, or the one that a path names; none where ``source`` is anything else.

    Raises:
        BadData: other files lie among them, so that it is not clear what is meant to be answered.
    """
    if not isinstance(source, str | os.PathLike):
        return []
    path = Path(source).expanduser()
    if path.is_file() and path.suffix.lower() in IMAGES:
        return [str(path)]
    files = sorted(p for p in path.iterdir() if not p.name.startswith(".")) if path.is_dir() else []
    pictures = [str(p) for p in files if p.is_file() and p.suffix.lower() in IMAGES]
    others = [p.name for p in files if str(p) not in pictures]
    if pictures and others:
        raise BadData(f"{path} holds {len(pictures)} pictures, and beside them what is none: {', '.join(others[:5])}. Move one or "
                      "the other")
    return pictures


def choose_split(splits: Mapping[str, Rows], split: str | None) -> Rows:
    """The one split, or the one that was named.

    Raises:
        BadData: there is no such split, or there are several.
    """
    if split is not None and split not in splits:
        raise BadData(f"there is no split {split!r}." + nearest(split, [name or "the whole" for name in splits]))
    if split is None and len(splits) > 1:
        raise BadData(f"the data has the splits {', '.join(map(repr, splits))}: name one (--split)")
    return splits[split] if split is not None else next(iter(splits.values()))


def from_texts(texts: list[str], task: str, format: Format | None = None) -> Table:
    """Texts typed by hand as the one role that ``task`` sees, or the one field of a format.

    Raises:
        BadData: it sees more than one text, or none.
    """
    if format is not None:
        seen = [field.name for field in format.fields if field.needed]
        alone = len(seen) == 1 and format.fields[0].kind == "text"
    else:
        seen = [role for role in TASKS[task].seen if role != "text_pair"]
        alone = seen in (["text"], ["source"])
    if not alone:
        raise BadData(f"{task} cannot be asked with a text alone: it sees {' and '.join(seen)}; give --data")
    if any(not text.strip() for text in texts):
        raise BadData("a text to answer is empty")
    if format is not None:
        return write_questions(from_columns("the texts", {seen[0]: texts}), format)
    return {seen[0]: list(texts)}

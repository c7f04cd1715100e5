"""`read`: from whatever a user has to a `Dataset`, or an error that says what is wrong and where."""
from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from thrifty.core.errors import BadData, NoSuchSetting, nearest
from thrifty.data import answers, fields, formatted, hub, labels, leaks
from thrifty.data.columns import Choice, decide
from thrifty.data.dataset import Dataset
from thrifty.data.folders import read_folder
from thrifty.data.memory import read_memory
from thrifty.data.rows import Faults, Given, Rows
from thrifty.data.sampling import check_limit, check_shots, draw, draw_shots
from thrifty.data.split_column import divide_by_column
from thrifty.data.splitnames import SPLITS, name_splits
from thrifty.data.splits import arrange, check_fractions, check_train
from thrifty.data.tables import SUFFIXES, parse, read_file
from thrifty.data.values import NAMES, canonise
from thrifty.data.zipped import open_zip
from thrifty.formats import Format, find
from thrifty.formats.classes import Classes

BUILT_IN = ("cityline",)
MOST_SHOTS = 4  # of each class in validation: more labels than that would no longer be few


def read(
    source: Any,
    *,
    task: str | None = None,
    columns: Mapping[str, Any] | None = None,
    seed: int = 0,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    allow_leak: bool = False,
    skip_bad: bool = False,
    limit: int | None = None,
    shots: int | None = None,
    generation: str = "causal-generation",
    format: str | None = None,
    words: Mapping[str, str] | None = None,
) -> Dataset:
    """Read labelled rows, find out what they are for, check them, and split them.

    Args:
        source: a CSV, TSV, JSON lines, JSON or Parquet file; a folder of such files named by split; a folder of images
            by class, or beside a table that names them; a zip archive of such a folder; a folder that `datasets` saved; a
            hub id ("owner/name" or "owner/name:config"); "cityline", the set that ships; or in Python a dict of splits or
            one table (dict of columns, list of row dicts).
        task: one of the nine tasks; inferred if it is None (masked-language never is, contrastive if captions are named).
        columns: role -> column name, for roles that cannot be guessed ({"text": "review", "label": "stars"}).
        seed: for carving splits and for ``limit``.
        fractions: train, validation and test where all three are carved.
        allow_leak: go on although rows of equal content lie in different splits, and record them.
        skip_bad: leave out rows that cannot be used, and record them.
        limit: train on at most this many rows, drawn with ``seed``.
        shots: train on this many rows of every class, drawn with ``seed``, and select on as many, but at most four.
        generation: which of the two generation tasks a source and a target mean.
        format: write the rows as texts, as `thrifty.formats.find` describes; the roles are then the format's fields.
        words: class -> the word that spells it in a format.

    Raises:
        BadData: anything about the data, naming the file and the rows.
        NoSuchSetting: an unknown task, role, or a value out of range.
        Missing: an optional package that this kind of source needs.
    """
    check_fractions(fractions)
    check_limit(limit)
    check_shots(shots)
    if shots is not None and limit is not None:
        raise NoSuchSetting(f"shots={shots} and limit={limit} both say how many rows to train on: give one of them.")
    given = open_source(source)
    divide_by_column(given, [name for names in (columns or {}).values() for name in str(names).split(",")])
    main = main_table(given)
    written, choice = (None, decide(main.table, task, columns, generation)) if format is None else fields.settle(
        format, task, words, main.table, columns, generation)
    given.notes += [note for rows in given.splits.values() for note in rows.notes]
    labels.drop_unlabelled(given, choice)
    faults = Faults()
    parts = clean(given, choice, faults, skip_bad, written, main.class_names)
    told = written.labels if isinstance(written, Classes) else ()
    names = list(told) or labels.encode(parts, choice, main.class_names, given.notes)
    parts = arrange(parts, names if "label" in choice.columns else None, fractions, seed, given.notes)
    found = leaks.refuse(parts, allow_leak)
    repeats = {split: leaks.count_repeats(parts[split]) for split in SPLITS}
    drawn = None if limit is None else {"limit": limit, "of": len(parts["train"]), "seed": seed}
    if limit is not None:
        parts["train"] = draw(parts["train"], limit, seed)
    if shots is not None:
        parts["train"] = draw_shots(parts["train"], shots, seed)
        parts["validation"] = draw_shots(parts["validation"], min(shots, MOST_SHOTS), seed, scarce=True)
        given.notes.append(f"{shots} rows of every class were drawn from train with seed {seed}, and from validation "
                           f"{min(shots, MOST_SHOTS)}, or as many as there are; test is whole.")
    record = describe(given, choice, parts) | {
        "seed": seed, "fractions": list(fractions), "labels": names, "decisions": given.notes, "leaks": found,
        "duplicates": repeats, "skipped": faults.record(), "limit": drawn,
    }  # fmt: skip
    return write_down(parts, choice.task, names, record, format, words)


def write_down(parts: dict[str, Rows], task: str, names: list[str] | None, record: dict[str, Any], format: str | None,
               words: Mapping[str, str] | None) -> Dataset:
    """The dataset: splits by role, or as a format writes them."""
    if format is not None:
        tables = formatted.write_splits(parts, find(format, task=task, labels=names, words=words), record)
        return Dataset(tables, record["columns"], task, names, record, format, dict(words) if words else None)
    tables = {split: {role: rows.table[role] for role in rows.table if role != NAMES} for split, rows in parts.items()}
    return Dataset(tables, record["columns"], task, names, record)


def main_table(given: Given) -> Rows:
    """The train split, or the only table: what roles and tasks are inferred from.

    Raises: BadData when there is no such table, or none of its rows can be read.
    """
    check_train(given.splits)
    main = given.splits["train" if "train" in given.splits else ""]
    if not len(main):
        faults = Faults()
        faults.found += main.unreadable
        faults.settle(False)
    return main


def clean(given: Given, choice: Choice, faults: Faults, skip_bad: bool, written: Format | None = None,
          declared: Mapping[str, list[str]] | None = None) -> dict[str, Rows]:
    """Every split under its roles' names, without the rows that cannot be used, each row with a digest of its content.

    ``written`` is the format that must be able to write them, ``declared`` what files say of the names of classes.

    Raises: BadData for unusable rows unless ``skip_bad``, or when a split has no other.
    """
    parts = {split: canonise(rows, choice, faults) for split, rows in given.splits.items()}
    if written is not None:
        parts = formatted.prepare(parts, written, choice.columns.get("label"), declared or {}, faults, given.notes)
    if choice.task == "multiple-choice":
        parts = answers.resolve(parts, faults, given.notes)
    faults.settle(skip_bad)
    for split, rows in parts.items():
        if not len(rows):
            raise BadData(f"no row of the {split or 'given'} table is usable.")
        leaks.mark(rows, choice.seen)
    return parts


def open_source(source: Any) -> Given:
    """Everything ``source`` holds, before any meaning is given to it.

    Raises: BadData, Missing as `read`.
    """
    if not isinstance(source, str | os.PathLike):
        return read_memory(source)
    name = os.fspath(source)
    if name in BUILT_IN:
        return read_built_in(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return hub.read_saved(path) if hub.is_saved(path) else read_folder(path)
    if path.is_file() and path.suffix.lower() == ".zip":
        return read_folder(open_zip(path, name))
    if path.is_file():
        parts, record = read_file(path, path.name)
        meant, _ = name_splits(parts, path.name) if "" not in parts else ({"": ""}, [])
        return Given("file", name, {split: parts[key] for key, split in meant.items()}, [record])
    if path.suffix.lower() not in (*SUFFIXES, ".zip") and hub.looks_like_id(name):
        return hub.read_hub(name)
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    raise BadData(f"there is no file or folder {name!r}.{nearest(path.name, [*beside, *BUILT_IN])}")


def read_built_in(name: str) -> Given:
    """The set that ships inside the package."""
    given = Given("built-in", name, {})
    for split in SPLITS:
        file = resources.files("thrifty.data").joinpath(name, f"{split}.csv")
        data = file.read_bytes()
        rows = given.splits[split] = parse(f"{name}/{split}.csv", ".csv", data)[""]
        given.files.append({"name": f"{name}/{split}.csv", "sha256": hashlib.sha256(data).hexdigest(), "rows": len(rows)})
    return given


def describe(given: Given, choice: Choice, parts: dict[str, Rows]) -> dict[str, Any]:
    """The record's facts on the source, the columns and the rows."""
    return {
        "source": {"kind": given.kind, "name": given.name},
        "files": given.files,
        "task": choice.task,
        "task_why": choice.why,
        "columns": {role: ",".join(names) for role, names in choice.columns.items()},
        "ignored": choice.ignored,
        "rows": {split: len(parts[split]) for split in SPLITS},
        "content": {split: leaks.digest([parts[split].keys, parts[split].table.get("label")]) for split in SPLITS},
    }

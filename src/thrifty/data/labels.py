"""The label space: which classes there are, in which order, under which names."""
from __future__ import annotations

from typing import Any

from thrifty.core.errors import BadData, nearest
from thrifty.data.columns import Choice
from thrifty.data.describe import is_finite
from thrifty.data.rows import Given, Rows, spell
from thrifty.data.values import NAMES


def drop_unlabelled(given: Given, choice: Choice) -> None:
    """Leave out a validation or test split whose labels are all missing or -1, as public benchmarks publish theirs."""
    name = (choice.columns.get("label") or [""])[0]
    train = given.splits.get("train")
    if train is None or name not in train.table or any(str(value) == "-1" for value in train.table[name]):
        return
    for split in ("validation", "test"):
        values = given.splits[split].table.get(name) if split in given.splits else None
        if values and all(value is None or str(value) == "-1" for value in values):
            del given.splits[split]
            given.notes.append(f"the given {split} split was left out: it has no labels (all {values[0]}).")


def encode(parts: dict[str, Rows], choice: Choice, declared: dict[str, list[str]], notes: list[str]) -> list[str] | None:
    """Turn labels or tags into indices, in place, and return the names of the classes in order; None for other tasks.

    The space is what the train split (or the only table) holds: numbers in numeric order, anything else sorted as text.
    Names come from the column that names the classes if it does so one to one, or from what the file declares.

    Raises: BadData for labels of other splits that training does not have, with file, row and label.
    """
    role = "tags" if choice.task == "token-classification" else "label"
    if not choice.task.endswith("classification"):
        return None
    train = parts["train"] if "train" in parts else next(iter(parts.values()))
    space = order({str(value) for value in flatten(train.table[role])})
    if role == "label" and len(space) < 2:
        raise BadData(f"every row has the label {space[0]!r}: there is nothing to tell apart.")
    refuse_strangers(parts, role, space)
    index = {value: i for i, value in enumerate(space)}
    names = name_classes(parts, space, declared.get(choice.columns[role][0]), choice.naming, notes)
    for rows in parts.values():
        column = rows.table[role]
        rows.table[role] = [[index[str(tag)] for tag in tags] for tags in column] if role == "tags" else [
            index[str(value)] for value in column]  # fmt: skip
    return names


def order(values: set[str]) -> list[str]:
    """Numbers by size, anything else as text."""
    return sorted(values, key=float) if all(map(is_finite, values)) else sorted(values)


def flatten(column: list[Any]) -> list[Any]:
    """Labels as they are, lists of tags as one list."""
    return [item for value in column for item in (value if isinstance(value, list) else [value])]


def refuse_strangers(parts: dict[str, Rows], role: str, space: list[str]) -> None:
    """Raises: BadData for labels outside ``space``."""
    known = set(space)
    strangers = [
        (place, str(item))
        for rows in parts.values()
        for place, value in zip(rows.places, rows.table[role], strict=True)
        for item in (value if isinstance(value, list) else [value])
        if str(item) not in known
    ]
    if strangers:
        raise BadData(
            f"{len(strangers)} labels do not occur in the training data:\n"
            + spell(f"{place}: {label!r}" for place, label in strangers)
            + f"\nA model cannot learn them.{nearest(strangers[0][1], space)}"
        )


def name_classes(
    parts: dict[str, Rows], space: list[str], declared: list[str] | None, naming: str | None, notes: list[str]
) -> list[str]:
    """A name for every class in ``space``, in its order."""
    if naming and all(NAMES in rows.table for rows in parts.values()):
        pairs = {
            (str(value), str(name))
            for rows in parts.values()
            for value, name in zip(rows.table["label"], rows.table[NAMES], strict=True)
        }
        if len(pairs) == len(space) == len({name for _, name in pairs}):
            notes.append(f"the classes are named by the column {naming!r}.")
            return [dict(pairs)[value] for value in space]
        notes.append(f"the column {naming!r} does not name the classes one to one, so they keep the values of the label.")
    elif declared and all(value.isdecimal() and int(value) < len(declared) for value in space):
        return [declared[int(value)] for value in space]
    return space

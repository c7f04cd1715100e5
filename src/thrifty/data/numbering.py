"""Labels as numbers of the classes that a format names."""
from __future__ import annotations

import re
from typing import Any

from thrifty.core.errors import nearest
from thrifty.data.rows import Faults, Rows
from thrifty.data.values import NAMES
from thrifty.formats.classes import Classes


def number_labels(parts: dict[str, Rows], format: Classes, declared: list[str] | None, faults: Faults, notes: list[str],
                  ) -> dict[str, Rows]:
    """Every label as a class number. Labels that are names of classes are taken by name. Numbers are taken by the names that a
    column or the file gives them, or, where those are not the format's names, as numbers of the published order, which is
    noted. Anything else is a fault."""
    values = {value for rows in parts.values() for value in rows.table["label"]}
    numbers = {value: place(value, format) for value in values}
    if all(number is None for number in numbers.values()):
        whole = {value: int(value) for value in values if is_class_number(value, len(format.labels))}
        names = name_numbers(parts, declared)
        numbers = {value: place(names.get(str(value), ""), format) for value in whole}
        if None in numbers.values():
            numbers = dict(whole)
            notes.append(f"labels were taken as the class numbers of {format.name}: "
                         + ", ".join(f"{i} is {label!r}" for i, label in enumerate(format.labels)) + ".")
    out = {}
    for split, rows in parts.items():
        column = rows.table["label"]
        for at, value in zip(rows.places, column, strict=True):
            if numbers.get(value) is None:
                said = "it has no label (-1)." if str(value) == "-1" else f"the label {value!r} is no class of {format.name}."
                faults.add(at, said + nearest(str(value), format.labels))
        kept = [i for i, value in enumerate(column) if numbers.get(value) is not None]
        rows.table["label"] = [numbers.get(value) for value in column]
        out[split] = rows.take(kept)
    return out


def place(value: Any, format: Classes) -> int | None:
    """The class that ``value`` names, whatever its case and however its words are joined; an answer names its class too."""
    for names in (format.labels, format.answers):
        known = [fold(name) for name in names]
        if fold(value) in known:
            return known.index(fold(value))
    return None


def fold(name: Any) -> str:
    """A name in lower case, its words joined by underscores."""
    return re.sub(r"[\s_-]+", "_", str(name).strip().lower())


def is_class_number(value: Any, classes: int) -> bool:
    """Whether ``value`` is, or writes, a number below ``classes``."""
    return isinstance(value, bool) or (re.fullmatch(r"\d+", str(value)) is not None and int(value) < classes)


def name_numbers(parts: dict[str, Rows], declared: list[str] | None) -> dict[str, str]:
    """Label -> its name, from the column that names classes or from what the file declares; empty where they contradict."""
    if all(NAMES in rows.table for rows in parts.values()):
        pairs = {(str(value), str(name)) for rows in parts.values()
                 for value, name in zip(rows.table["label"], rows.table[NAMES], strict=True)}
        return dict(pairs) if len(pairs) == len({value for value, _ in pairs}) else {}
    return {str(i): name for i, name in enumerate(declared or ())}

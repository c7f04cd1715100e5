"""Which choice is right: people write it as an index, a letter, a number counted from 1, or the choice itself."""
from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from thrifty.core.errors import BadData
from thrifty.data.rows import Faults, Rows

Reading = Callable[[Any, list[str]], int | None]


def as_index(answer: Any, choices: list[str]) -> int | None:
    """0 is the first choice."""
    number = as_number(answer)
    return number if number is not None and 0 <= number < len(choices) else None


def as_ordinal(answer: Any, choices: list[str]) -> int | None:
    """1 is the first choice."""
    number = as_number(answer)
    return number - 1 if number is not None and 1 <= number <= len(choices) else None


def as_letter(answer: Any, choices: list[str]) -> int | None:
    """A is the first choice."""
    if not isinstance(answer, str) or not re.fullmatch(r"[A-Za-z]", answer):
        return None
    number = ord(answer.upper()) - ord("A")
    return number if number < len(choices) else None


def as_mark(answer: Any, choices: list[str]) -> int | None:
    """A or 1 is the first choice: some exams (ARC) letter their choices, others number them."""
    letter = as_letter(answer, choices)
    return as_ordinal(answer, choices) if letter is None else letter


def as_choice(answer: Any, choices: list[str]) -> int | None:
    """The choice itself."""
    return choices.index(answer) if isinstance(answer, str) and choices.count(answer) == 1 else None


def as_number(answer: Any) -> int | None:
    """A whole number, or the writing of one."""
    if isinstance(answer, str):
        return int(answer) if re.fullmatch(r"[+-]?\d{1,9}", answer) else None
    return int(answer) if isinstance(answer, int | float) and answer == int(answer) else None


READINGS: dict[str, Reading] = {
    "an index from 0": as_index,
    "a letter": as_letter,
    "a number from 1": as_ordinal,
    "a letter, or a number from 1": as_mark,
    "the choice itself": as_choice,
}


def resolve(parts: dict[str, Rows], faults: Faults, notes: list[str]) -> dict[str, Rows]:
    """Turn the answers of all splits into indices by the one reading that fits most rows; the other rows are faults.

    Raises: BadData when an index or letter and the choice itself fit equally well and mean different things.
    """
    pairs = [pair for rows in parts.values() for pair in zip(rows.table["label"], rows.table["choices"], strict=True)]
    read = {name: [reading(*pair) for pair in pairs] for name, reading in READINGS.items()}
    fit = {name: sum(value is not None for value in values) for name, values in read.items()}
    best = max(READINGS, key=lambda name: fit[name])
    literal = read["the choice itself"]
    if fit[best] == fit["the choice itself"] > 0 and read[best] != literal and any(isinstance(pair[0], str) for pair in pairs):
        raise BadData(f"the answers can be read as {best} and as the choice itself, and these differ: write them as indices.")
    notes.append(f"the answer was read as {best}.")
    out = {}
    for split, rows in parts.items():
        found = [READINGS[best](*pair) for pair in zip(rows.table["label"], rows.table["choices"], strict=True)]
        for place, answer, value in zip(rows.places, rows.table["label"], found, strict=True):
            if value is None:
                faults.add(place, f"the answer {answer!r} is none of the choices (read as {best})")
        rows.table["label"] = found
        out[split] = rows.take([i for i, value in enumerate(found) if value is not None])
    return out

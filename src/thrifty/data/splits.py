"""Splits: as given, or carved with a seed, every class in its share, the same content never on two sides."""
from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence

from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.data.rows import Rows
from thrifty.data.splitnames import SPLITS

FEWEST = 3
"""A class needs this many different rows before it can be carved."""


def check_fractions(fractions: Sequence[float]) -> None:
    """Raises: NoSuchSetting unless there are three positive shares that sum to 1."""
    if len(fractions) != 3 or min(fractions) <= 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise NoSuchSetting(f"fractions must be three positive shares (train, validation, test) of 1, not {fractions}.")


def check_train(given: Collection[str]) -> None:
    """Raises: BadData unless there is a train split, or one table to carve all splits from."""
    if "train" not in given and "" not in given:
        raise BadData(
            f"there is no train split, only {' and '.join(sorted(given))}. To carve all splits out of one file, "
            "give that file alone; or give a dict of splits."
        )


def arrange(
    parts: dict[str, Rows], labels: list[str] | None, fractions: Sequence[float], seed: int, notes: list[str]
) -> dict[str, Rows]:
    """Train, validation and test from whatever was given. ``notes`` receives what was decided, in plain words.

    Raises: BadData when a class is too small to carve.
    """
    given = set(parts)
    part = fractions[1] / (fractions[0] + fractions[1])
    if given == set(SPLITS):
        notes.append("the splits are as given.")
        return parts
    if len(given) == 1 and given <= {"", "train"}:
        sides = carve(next(iter(parts.values())), labels, fractions, seed)
        notes.append(f"train, validation and test were carved out of one table with seed {seed}, {shares(fractions)}.")
        return dict(zip(SPLITS, sides, strict=True))
    train, validation = carve(parts["train"], labels, (1 - part, part), seed)
    if "test" in parts:
        notes.append(f"a validation split was carved out of train with seed {seed}, {shares((1 - part, part))}.")
        return {"train": train, "validation": validation, "test": parts["test"]}
    notes.append(
        "the given validation split is the test split; a selection split was carved out of train "
        f"with seed {seed}, {shares((1 - part, part))}."
    )
    return {"train": train, "validation": validation, "test": parts["validation"]}


def shares(fractions: Sequence[float]) -> str:
    """Fractions in words."""
    return "in shares of " + " to ".join(f"{fraction:.3g}" for fraction in fractions)


def carve(rows: Rows, labels: list[str] | None, fractions: Sequence[float], seed: int) -> list[Rows]:
    """One part of ``rows`` for each fraction, each in the order of ``rows``.

    With ``labels`` every class is divided by itself. Rows of equal content (equal keys), or of one group, stay on one side.

    Raises: BadData naming classes with fewer than three different rows, or too few rows altogether.
    """
    groups: dict[str, list[int]] = {}
    for i, key in enumerate(rows.groups or rows.keys):
        groups.setdefault(key, []).append(i)
    strata: dict[int, list[list[int]]] = {}
    for group in groups.values():
        strata.setdefault(rows.table["label"][group[0]] if labels else 0, []).append(group)
    small = [stratum for stratum in sorted(strata) if len(strata[stratum]) < FEWEST]
    if small:
        what = f"there are {len(groups)}"
        if labels:
            what = ", ".join(f"the class {labels[i]!r} has {len(strata[i])}" for i in small)
        raise BadData(
            f"carving splits needs {FEWEST} different rows{' of every class' if labels else ''}: {what}. "
            "Add rows, leave the class out, or give the splits yourself."
        )
    generator = random.Random(seed)
    sides: list[list[int]] = [[] for _ in fractions]
    for stratum in sorted(strata):
        divide(strata[stratum], fractions, generator, sides)
    return [rows.take(sorted(side)) for side in sides]


def divide(groups: list[list[int]], fractions: Sequence[float], generator: random.Random, sides: list[list[int]]) -> None:
    """Deal shuffled ``groups`` out to ``sides``, each to the side that lacks the largest part of its share.

    With groups of one row this meets the shares exactly. The last groups go to sides that would stay empty.
    """
    wanted = apportion(sum(map(len, groups)), fractions)
    dealt = [0] * len(fractions)
    groups = list(groups)
    generator.shuffle(groups)
    for left in range(len(groups), 0, -1):
        empty = [i for i, count in enumerate(dealt) if not count]
        open_sides = empty if len(empty) >= left else range(len(fractions))
        side = max(open_sides, key=lambda i: (wanted[i] - dealt[i]) / wanted[i])
        group = groups.pop()
        sides[side].extend(group)
        dealt[side] += len(group)


def apportion(count: int, fractions: Sequence[float]) -> list[int]:
    """Whole numbers that sum to ``count`` in the ratio of ``fractions``, by largest remainder, none of them zero.

    ``count`` must be at least the number of fractions.
    """
    exact = [count * fraction for fraction in fractions]
    whole = [math.floor(value + 1e-9) for value in exact]
    rest = sorted(range(len(exact)), key=lambda i: whole[i] - exact[i])
    for i in rest[: count - sum(whole)]:
        whole[i] += 1
    for i, value in enumerate(whole):
        if not value:
            whole[whole.index(max(whole))] -= 1
            whole[i] = 1
    return whole

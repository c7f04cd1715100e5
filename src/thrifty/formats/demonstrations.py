"""Examples to put in front of a question, drawn from the training rows with a seed."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from thrifty.core.errors import BadData, NoSuchSetting


@dataclass(frozen=True)
class Item:
    """A question: its text, the answers that it may have, and the number of the right one."""

    input: str
    options: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Demonstration:
    """A text with the answer that is shown for it. Where both are to be empty, ``options`` are empty texts, too."""

    input: str
    output: str
    options: tuple[str, ...]

    @property
    def unlabelled(self) -> bool:
        """Whether no answer is shown."""
        return not any(self.options)


def choose(labels: Sequence[int], shots: int, seed: int, balanced: bool = False) -> list[int]:
    """Numbers of ``shots`` different rows in the order in which they are shown.

    ``balanced`` takes as many of every class as of any other; what cannot be shared out goes to classes drawn by lot, one each.

    Raises: NoSuchSetting for fewer than 0 shots; BadData where there are not so many rows, of a class if ``balanced``.
    """
    if shots < 0:
        raise NoSuchSetting(f"shots must be at least 0, not {shots}.")
    if shots > len(labels):
        raise BadData(f"{shots} demonstrations were asked for, but there are {len(labels)} training rows.")
    drawn = np.random.RandomState(seed)
    order = drawn.permutation(len(labels))
    if not balanced:
        return [int(i) for i in order[:shots]]
    classes = sorted(set(labels))
    wanted = dict.fromkeys(classes, shots // len(classes))
    for k in drawn.permutation(len(classes))[:shots % len(classes)]:
        wanted[classes[k]] += 1
    found: list[int] = []
    for label in classes:
        rows = [int(i) for i in order if labels[i] == label]
        if len(rows) < wanted[label]:
            raise BadData(f"{shots} balanced demonstrations need {wanted[label]} rows of class {label}; there are {len(rows)}.")
        found += rows[:wanted[label]]
    return [found[i] for i in drawn.permutation(len(found))]

"""A format of the user's own: any text with places for the columns of a table."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from thrifty.core.errors import NoSuchSetting, nearest
from thrifty.formats.classes import Classes
from thrifty.formats.format import UNKNOWN, Field, Format, Row
from thrifty.formats.numbers import read_number
from thrifty.formats.passages import Answer
from thrifty.formats.template import PLACE, fill


@dataclass(frozen=True)
class Own(Format):
    """``name`` is the text itself: "Is this review good? {text}"."""

    def write(self, row: Row, turn: int = 0) -> str:
        """The text with the row's columns in their places."""
        return fill(self.name, {field.name: row[field.name] for field in self.fields})


@dataclass(frozen=True)
class OwnClasses(Own, Classes):
    """For classes that the data names."""

    scores: tuple[str, ...] = ("accuracy", "macro_f1", "matthews")


@dataclass(frozen=True)
class OwnNumbers(Own):
    """For numbers, written as they are in the data, with at most four digits."""

    scores: tuple[str, ...] = ("pearson", "spearman", "negative_mse", "negative_mae")
    task: ClassVar[str] = "regression"

    def target(self, row: Row) -> str:
        """The number."""
        return UNKNOWN if row.get("label") is None else f"{row['label']:.4g}"

    def read(self, text: str, row: Row) -> float:
        """The number, or -1."""
        return read_number(text)


@dataclass(frozen=True)
class OwnTexts(Own, Answer):
    """For texts to write, judged as any written text is."""

    scores: tuple[str, ...] = ("negative_loss", "bleu", "chrf", "cider", "exact_match")


KINDS: dict[str, type[Own]] = {"text-classification": OwnClasses, "regression": OwnNumbers, "causal-generation": OwnTexts,
                               "seq2seq-generation": OwnTexts, "generation": OwnTexts}


def make(text: str, task: str) -> Own:
    """The format that ``text`` is, for rows of ``task``.

    Raises: NoSuchSetting for a task that texts cannot answer, or a text without a place.
    """
    if task not in KINDS:
        raise NoSuchSetting(f"a format of your own cannot serve {task}.{nearest(task, KINDS)}")
    names = list(dict.fromkeys(PLACE.findall(text)))
    if not names:
        raise NoSuchSetting(f"the format {text!r} has no place for a column, such as {{text}}.")
    return KINDS[task](text, tuple(map(Field, names)))

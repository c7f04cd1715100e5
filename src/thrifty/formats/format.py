"""What a format is: rows of a task written as texts with the texts to answer, and answers read back."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from thrifty.core.errors import BadData

Row = Mapping[str, Any]
Lesson = tuple[int, str, str]       # number of a row, source, target

UNKNOWN = "<unk>"   # the target of a row that has no answer, as published test rows have none
INVALID = -1        # the class of a text that names no class


class Unwritable(BadData):
    """A row that a format cannot write; the message says why."""


@dataclass(frozen=True)
class Field:
    """One thing that a format reads of a row: a text, a list of texts, or a whole number. ``others``: more names of its column."""

    name: str
    kind: Literal["text", "texts", "whole"] = "text"
    others: tuple[str, ...] = ()
    needed: bool = True


@dataclass(frozen=True)
class Format(ABC):
    """How rows of one task become texts.

    A row holds ``fields`` by name and, where it is known, its answer: ``label`` (a class number or a number) or ``references``
    (texts, the first of them the one to learn).

    Attributes:
        name: as `thrifty.formats.find` takes it.
        fields: what is read of a row.
        task: what the answers are, once read: text-classification, regression, multiple-choice or generation.
        scores: metrics that may select, the published one first.
        ranked: whether answers are by default chosen by their likelihood; otherwise they are written.
        kept: fields that reading an answer needs again.
        taught: whether rows may be trained on at all.
        featured: whether the label could be told from features of the text alone.
    """

    name: str
    fields: tuple[Field, ...]

    task: ClassVar[str]
    scores: tuple[str, ...] = ()
    ranked: ClassVar[bool] = False
    kept: ClassVar[tuple[str, ...]] = ()
    taught: ClassVar[bool] = True
    featured: ClassVar[bool] = True

    @abstractmethod
    def write(self, row: Row, turn: int = 0) -> str:
        """The text that the model sees. ``turn`` is the row's number in its split; formats with many wordings take turns by it.

        Raises: Unwritable.
        """

    @abstractmethod
    def target(self, row: Row) -> str:
        """The text that the model must write; ``<unk>`` where the row has no answer."""

    @abstractmethod
    def read(self, text: str, row: Row) -> Any:
        """What a written text answers: a class or choice number (-1 if it names none), a number, or the text."""

    def options(self, row: Row) -> tuple[str, ...]:
        """Every answer that a row may have, in order of their numbers; none where answers are free."""
        return ()

    def group(self, row: Row) -> str | None:
        """What rows that are judged together have in common, or None where each row stands alone."""
        return None

    def lessons(self, rows: Sequence[Row]) -> Iterator[Lesson]:
        """What to train on: by default every row once."""
        for number, row in enumerate(rows):
            yield number, self.write(row, number), self.target(row)


def known(row: Row) -> bool:
    """Whether the row has a label; -1 stands for none."""
    label = row.get("label")
    return label is not None and label != INVALID


def find_text(text: str, answers: Sequence[str]) -> int:
    """The number of the answer that ``text`` is, to the letter; -1 if it is none."""
    return answers.index(text) if text in answers else INVALID

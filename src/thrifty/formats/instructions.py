"""Instruction formats: a task told in words, in several wordings that rows take in turn.

Wei, Bosma, Zhao, Guu, Yu, Lester, Du, Dai, Le: Finetuned Language Models Are Zero-Shot Learners; ICLR 2022, arXiv:2109.01652.
The wordings are this library's own. Answers are ranked by their likelihood unless told otherwise.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from thrifty.formats.classes import Classes
from thrifty.formats.format import UNKNOWN, Format, Lesson, Row, Unwritable, find_text, known
from thrifty.formats.numbers import read_number
from thrifty.formats.passages import Answer
from thrifty.formats.template import OPTIONS, Template, fill, list_options

UNANSWERABLE = "unanswerable"
Filling = Callable[[Row], Mapping[str, str]]


@dataclass(frozen=True)
class Instruction(Format):
    """Rows told by ``templates`` in turn; ``filling`` turns a row into the fields of the templates."""

    templates: tuple[Template, ...] = ()
    filling: Filling = dict
    only: int | None = None     # one wording for all rows

    ranked: ClassVar[bool] = True

    @property
    def tells(self) -> bool:
        """Whether some lessons ask for a field of the row instead of its answer."""
        return self.only is None and any(template.inverse for template in self.templates)

    def write(self, row: Row, turn: int = 0) -> str:
        """The row in the direct wording whose turn it is."""
        fields = self.filling(row)
        return self.tell(self.choose(fields, turn, direct=True), row, fields)[0]

    def choose(self, fields: Mapping[str, str], turn: int, direct: bool = False) -> Template:
        """The template whose turn it is among those that ``fields`` can fill, or the ``only`` one.

        Raises: Unwritable if there is none.
        """
        if self.only is not None:
            usable = [self.templates[self.only]]
        else:
            usable = [t for t in self.templates
                      if t.places <= {*fields, OPTIONS, "answer"} and not (direct and t.inverse)]
        if not usable:
            raise Unwritable(f"no wording of {self.name} does with the fields {sorted(fields)}")
        return usable[turn % len(usable)]

    def tell(self, template: Template, row: Row, fields: Mapping[str, str]) -> tuple[str, str]:
        """Source and target of a row in one wording."""
        filled = {**fields, OPTIONS: list_options(self.options(row)), "answer": self.target(row)}
        return fill(template.source, filled), fill(template.target, filled)

    def lessons(self, rows: Sequence[Row]) -> Iterator[Lesson]:
        """All wordings equally often, inverse ones too: rows go in groups of as many as there are wordings, and the i-th of a
        group is told by the i-th. What does not fill a group is left out, unless there is no whole group or one wording only."""
        usable = [t for t in self.templates if rows and t.places <= {*self.filling(rows[0]), OPTIONS, "answer"}]
        whole = len(rows) // max(1, len(usable)) * len(usable) if self.only is None else 0
        for number, row in enumerate(rows[:whole or len(rows)]):
            fields = self.filling(row)
            yield number, *self.tell(self.choose(fields, number), row, fields)


@dataclass(frozen=True)
class ClassInstruction(Instruction, Classes):
    """Answers are classes."""


@dataclass(frozen=True)
class NumberInstruction(Instruction):
    """Answers are whole numbers from 0 to 5."""

    scores: tuple[str, ...] = ("pearson", "spearman", "negative_mse", "negative_mae")
    task: ClassVar[str] = "regression"

    def target(self, row: Row) -> str:
        """The number, rounded; a half goes to the even one."""
        return UNKNOWN if row.get("label") is None else str(int(np.rint(np.float32(row["label"]))))

    def read(self, text: str, row: Row) -> float:
        """The number, or -1."""
        return read_number(text)

    def options(self, row: Row) -> tuple[str, ...]:
        """All six."""
        return tuple("012345")


@dataclass(frozen=True)
class ChoiceInstruction(Instruction):
    """Answers are the choices of each row."""

    pick: Callable[[Row], Sequence[Any]] = lambda row: row["choices"]
    scores: tuple[str, ...] = ("accuracy",)
    task: ClassVar[str] = "multiple-choice"

    def target(self, row: Row) -> str:
        """The right choice."""
        return self.options(row)[row["label"]] if known(row) else UNKNOWN

    def read(self, text: str, row: Row) -> int:
        """The number of the choice that was written, or -1."""
        return find_text(text, row.get("choices") or self.options(row))

    def options(self, row: Row) -> tuple[str, ...]:
        """The choices."""
        return tuple(self.pick(row))


@dataclass(frozen=True)
class TextInstruction(Instruction, Answer):
    """Answers are free texts; a question without any is "unanswerable"."""

    ranked: ClassVar[bool] = False

    def target(self, row: Row) -> str:
        """The first answer."""
        return next(iter(row.get("references") or ()), UNANSWERABLE)

    def accept(self, answers: Sequence[str]) -> list[str]:
        """The answers; a question without any is to be called unanswerable."""
        return list(answers) or [UNANSWERABLE]

"""Formats whose answers are classes, each spelled by one string (its verbaliser)."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

from thrifty.core.errors import NoSuchSetting, nearest
from thrifty.formats.format import UNKNOWN, Format, Row, find_text, known

C = TypeVar("C", bound="Classes")


@dataclass(frozen=True)
class Classes(Format):
    """``labels`` name the classes in order; ``answers`` spell them, and are the same unless told otherwise.

    A written text must be an answer to the letter; anything else is class -1, which is always wrong. Formats for labels that
    only the data knows have none until `bind` gives them.
    """

    labels: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    scores: tuple[str, ...] = ("accuracy",)
    task: ClassVar[str] = "text-classification"

    def __post_init__(self) -> None:
        if not self.answers:
            object.__setattr__(self, "answers", self.labels)
        twice = sorted({answer for answer in self.answers if self.answers.count(answer) > 1})
        if twice or len(self.answers) != len(self.labels) or not all(answer.strip() for answer in self.answers):
            fault = f"{twice} stand for several classes" if twice else f"{list(self.answers)} spell {list(self.labels)}"
            raise NoSuchSetting(f"{self.name}: every class needs an answer of its own, but {fault}.")

    def target(self, row: Row) -> str:
        """The answer that spells the row's class."""
        return self.answers[row["label"]] if known(row) else UNKNOWN

    def read(self, text: str, row: Row) -> int:
        """The class that ``text`` spells, or -1."""
        return find_text(text, self.answers)

    def options(self, row: Row) -> tuple[str, ...]:
        """The answers, the same for every row."""
        return self.answers


def bind(format: C, labels: Sequence[str]) -> C:
    """``format`` for these classes.

    Raises: NoSuchSetting where the format has other classes of its own.
    """
    if format.labels == tuple(labels):
        return format
    if format.labels:
        raise NoSuchSetting(f"{format.name} has the classes {', '.join(format.labels)}, not {', '.join(labels)}.")
    return replace(format, labels=tuple(labels), answers=())


def spell(format: C, words: Mapping[str, str]) -> C:
    """``format`` with other words for some classes.

    Raises: NoSuchSetting for a class that does not exist, or two with the same word.
    """
    for label in words:
        if label not in format.labels:
            raise NoSuchSetting(f"words spell a class {label!r} that {format.name} does not have.{nearest(label, format.labels)}")
    return replace(format, answers=tuple(words.get(label, answer)
                                         for label, answer in zip(format.labels, format.answers, strict=True)))

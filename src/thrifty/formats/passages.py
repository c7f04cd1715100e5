"""T5's formats for texts with questions: MultiRC, ReCoRD and SQuAD (Raffel et al., JMLR 2020, arXiv:1910.10683)."""
from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from thrifty.formats.format import UNKNOWN, Format, Lesson, Row, Unwritable
from thrifty.formats.keyed import Keyed

_PUNCTUATION = re.compile(f"([{re.escape(string.punctuation)}])")


@dataclass(frozen=True)
class MultiRC(Keyed):
    """``multirc question: Q answer: A paragraph: P`` -> False or True. Answers to one question are judged together."""

    def write(self, row: Row, turn: int = 0) -> str:
        """Without markup: line breaks become spaces, bold type becomes plain."""
        return re.sub("</?b>", "", super().write(row).replace("<br>", " "))

    def group(self, row: Row) -> str:
        """The question with its paragraph."""
        return f"{row['paragraph']}\n{row['question']}"


@dataclass(frozen=True)
class Answer(Format):
    """Answers are free texts, any of several; judged by SQuAD's exact match and F1."""

    scores: tuple[str, ...] = ("f1", "exact_match")
    task: ClassVar[str] = "generation"

    def target(self, row: Row) -> str:
        """The first of the answers."""
        return next(iter(row.get("references") or ()), UNKNOWN)

    def read(self, text: str, row: Row) -> str:
        """The text itself."""
        return text

    def accept(self, answers: Sequence[str]) -> list[str]:
        """The texts that count as right, from the answers of a row.

        Raises: Unwritable for a row without any.
        """
        if not answers:
            raise Unwritable("it has no answer")
        return list(answers)


@dataclass(frozen=True)
class ReCoRD(Answer):
    """``record query: Q entities: e1, e2, ... passage: P`` -> an entity. Trained on once per right answer, judged once."""

    def write(self, row: Row, turn: int = 0) -> str:
        """The passage's highlights become sentences."""
        return f"record query: {row['query']} entities: {', '.join(row['entities'])} passage: {join_highlights(row['passage'])}"

    def group(self, row: Row) -> str:
        """The passage with its query."""
        return f"{row['passage']}\n{row['query']}"

    def lessons(self, rows: Sequence[Row]) -> Iterator[Lesson]:
        """One per answer; a row without any is taught as unknown."""
        for number, row in enumerate(rows):
            for answer in row.get("references") or [UNKNOWN]:
                yield number, self.write(row), answer


@dataclass(frozen=True)
class SQuAD(Answer):
    """``question: Q context: C``, or without a context ``squad trivia question: Q``; punctuation stands apart everywhere."""

    closed: bool = False

    def write(self, row: Row, turn: int = 0) -> str:
        """Question and context with spaces around punctuation."""
        question = part_punctuation(row["question"])
        if self.closed:
            return collapse(f"squad trivia question: {question}")
        return collapse(f"question: {question} context: {part_punctuation(row['context'])}")

    def accept(self, answers: Sequence[str]) -> list[str]:
        """The answers, with spaces around punctuation."""
        return [part_punctuation(answer) for answer in super().accept(answers)]


def join_highlights(passage: str) -> str:
    """A line "@highlight" becomes a space behind the end of a sentence, and the end of a sentence elsewhere."""
    ended = re.sub(r"""([.?!"'])\n@highlight\n""", r"\1 ", passage)
    return ended.replace("\n@highlight\n", ". ")


def part_punctuation(text: str) -> str:
    """Spaces around every ASCII punctuation mark, and runs of white space as one space."""
    return collapse(_PUNCTUATION.sub(r" \1 ", text))


def collapse(text: str) -> str:
    """Runs of white space as one space."""
    return re.sub(r"\s+", " ", text)

"""How demonstrations and a question are strung together, and which part of the string is scored.

Direct: each text, then its answer; the answer is scored. Channel: each answer, then its text; the question's text is scored
behind each answer. (Min et al., EMNLP 2022, arXiv:2202.12837, on the formats of MetaICL; Wei et al., ICLR 2022,
arXiv:2109.01652, for the marks of FLAN.)
"""
from __future__ import annotations

from dataclasses import dataclass

from thrifty.core.errors import NoSuchSetting, nearest
from thrifty.formats.demonstrations import Demonstration

SCORINGS = ("direct", "channel")
SEPARATORS = ("lines", "spaces", "flan")
Parts = tuple[str, str]


@dataclass(frozen=True)
class Layout:
    """``separator``: "lines" (a line break within a pair, three between pairs), "spaces" (one everywhere), or "flan" (marks:
    ``0 x1 X 1 y1 X 0 x X 1 FLAN``, direct only). Nothing stands in front of the first pair."""

    scoring: str = "direct"
    separator: str = "lines"

    def __post_init__(self) -> None:
        for what, value, known in (("scoring", self.scoring, SCORINGS), ("separator", self.separator, SEPARATORS)):
            if value not in known:
                raise NoSuchSetting(f"{what} is {value!r}.{nearest(value, known)}")
        if self.separator == "flan" and self.scoring == "channel":
            raise NoSuchSetting("the marks of FLAN stand around an answer to be scored: separator='flan' needs scoring='direct'.")

    def demonstrate(self, one: Demonstration, first: bool) -> Parts:
        """A demonstration in its two parts, each to be tokenised by itself."""
        return self._pair(one.input, one.output, first, one.unlabelled)

    def ask(self, text: str, option: str, first: bool) -> Parts:
        """A question with one of its answers: what stands before, and what is scored."""
        if self.separator == "flan":
            return f"{'' if first else ' X '}{wrap(text)}", f" {option}"
        return self._pair(text, option, first, False)

    def _pair(self, text: str, answer: str, first: bool, unlabelled: bool) -> Parts:
        if self.separator == "flan":
            return f"{'' if first else ' X '}0 {text}", f" X 1 {answer}"
        if self.separator == "spaces":
            one, other = (text, answer) if self.scoring == "direct" else (answer, text)
            return (one if first else f" {one}"), f" {other}"
        if self.scoring == "direct":
            before = "" if first else "\n\n" if not text else "\n\n\n"
            return before + text, answer if unlabelled else f"\n{answer}"
        return ("" if first else "\n\n\n") + answer, text if unlabelled or not text else f"\n{text}"


def wrap(text: str) -> str:
    """A question without demonstrations between the marks of FLAN."""
    return f"0 {text} X 1 FLAN"


def wrap_shots(shown: list[tuple[str, str]], text: str) -> str:
    """A question behind pairs of texts and answers, with the marks of FLAN."""
    parts = [f"0 {x} X 1 {y}" for x, y in shown]
    return " X ".join([*parts, f"0 {text} X 1"]).rstrip() + " FLAN"

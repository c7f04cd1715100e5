"""T5's formats for Winograd schemas: whom does a pronoun mean? (Raffel et al., JMLR 2020, arXiv:1910.10683.)

The pronoun is starred, ``wsc: The cup did not fit into the bag because *it* was too big.``, and the model writes the referent.
SuperGLUE's WSC asks whether one candidate is the referent, so that only rows whose candidate is right can be trained on, while
all are judged; definite pronoun resolution (DPR) is trained on with the same prefix. WNLI holds the same sentences as pairs: it
is judged this way and never trained on.
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from thrifty.formats.classes import Classes
from thrifty.formats.format import INVALID, UNKNOWN, Format, Lesson, Row, Unwritable, find_text, known
from thrifty.formats.pairing import find_referent

DETERMINERS = frozenset(("a", "an", "few", "her", "his", "each", "every", "many", "much", "my", "our", "some", "that", "the",
                         "their", "these", "this", "those", "which", "whose", "your"))


@dataclass(frozen=True)
class WSC(Classes):
    """Rows ask whether ``span1_text`` is what the pronoun ``span2_text``, word number ``span2_index``, means."""

    kept: ClassVar[tuple[str, ...]] = ("span1_text",)
    featured: ClassVar[bool] = False

    def write(self, row: Row, turn: int = 0) -> str:
        """The text with its pronoun starred."""
        return f"wsc: {star(row['text'], row['span2_text'], row['span2_index'])}"

    def target(self, row: Row) -> str:
        """The candidate, whether it is right or not."""
        return str(row["span1_text"])

    def read(self, text: str, row: Row) -> int:
        """1 if the text names the candidate, 0 if it names another, -1 if it names none."""
        return is_referent(text, row["span1_text"])

    def options(self, row: Row) -> tuple[str, ...]:
        """None: any noun phrase may be written."""
        return ()

    def lessons(self, rows: Sequence[Row]) -> Iterator[Lesson]:
        """Only rows whose candidate is right: nothing is known of what the others should say."""
        yield from (lesson for lesson in super().lessons(rows) if rows[lesson[0]]["label"] == 1)


@dataclass(frozen=True)
class WNLI(WSC):
    """Pairs of which the second puts a phrase where the first has a pronoun. Made for judging only."""

    kept: ClassVar[tuple[str, ...]] = ("sentence1", "sentence2")
    taught: ClassVar[bool] = False

    def write(self, row: Row, turn: int = 0) -> str:
        """The first sentence with the pronoun starred that the second replaces."""
        return f"wsc: {find_referent(row['sentence1'], row['sentence2'])[0]}"

    def target(self, row: Row) -> str:
        """What the second sentence puts in its place."""
        return find_referent(row["sentence1"], row["sentence2"])[1]

    def read(self, text: str, row: Row) -> int:
        """As for WSC, with the phrase as the candidate."""
        return is_referent(text, self.target(row))


@dataclass(frozen=True)
class MarkedWSC(Classes):
    """The older form, ``wsc text: ... * noun * ... # pronoun # ...`` -> False or True."""

    def write(self, row: Row, turn: int = 0) -> str:
        """The text with both places marked."""
        noun, pronoun = row["span1_index"], row["span2_index"]
        text = mark(row["text"], row["span1_text"], noun, "*")
        return f"wsc text: {mark(text, row['span2_text'], pronoun + 2 * (noun < pronoun), '#')}"


@dataclass(frozen=True)
class DPR(Format):
    """Rows hold a ``sentence``, its ``pronoun`` and ``candidates``; the first place of the pronoun is starred."""

    task: ClassVar[str] = "multiple-choice"
    scores: tuple[str, ...] = ("accuracy",)
    kept: ClassVar[tuple[str, ...]] = ("candidates",)

    def write(self, row: Row, turn: int = 0) -> str:
        """The sentence with its pronoun starred."""
        found = re.sub(f" ({re.escape(row['pronoun'])})( |\\.|,)", r" *\1*\2", row["sentence"], count=1)
        if found == row["sentence"]:
            raise Unwritable(f"the pronoun {row['pronoun']!r} does not stand in {row['sentence']!r}")
        return f"wsc: {found}"

    def target(self, row: Row) -> str:
        """The right candidate."""
        return str(row["candidates"][row["label"]]) if known(row) else UNKNOWN

    def read(self, text: str, row: Row) -> int:
        """The number of the candidate that was written."""
        return find_text(text, row["candidates"])

    def options(self, row: Row) -> tuple[str, ...]:
        """The candidates."""
        return tuple(row["candidates"])


def star(text: str, pronoun: str, index: int) -> str:
    """``text`` with the pronoun at word ``index`` between stars; punctuation that hangs on it is parted from it.

    Where another word stands at ``index``, as in a few published rows, the nearest place of the pronoun is meant.

    Raises: Unwritable if the pronoun stands nowhere.
    """
    words = text.strip().split(" ")
    places = [place for place, word in enumerate(words) if re.fullmatch(re.escape(pronoun) + r"\W*", word)]
    if not places:
        raise Unwritable(f"the pronoun {pronoun!r} does not stand in {text!r}")
    place = min(places, key=lambda one: abs(one - index))
    rest = words[place][len(pronoun):]
    return " ".join([*words[:place], f"*{pronoun}*", *([rest] if rest else []), *words[place + 1:]])


def mark(text: str, span: str, index: int, sign: str) -> str:
    """``text`` with ``sign`` on both sides of the span that begins at word ``index``.

    Raises: Unwritable if it does not begin there.
    """
    before = re.match(rf"(?:\S+\s){{{index}}}", text)
    if before is None or not text[before.end():].lower().startswith(span.lower()):
        raise Unwritable(f"word {index} of {text!r} does not begin {span!r}")
    rest = text[before.end():]
    return f"{before[0]}{sign} {rest[:len(span)]} {sign}{rest[len(span):]}"


def is_referent(text: str, candidate: str) -> int:
    """Whether ``text`` names the candidate: 1 or 0, and -1 if it holds nothing but determiners.

    All words of one must stand in the other; "Bob" is not "Bob's hat".
    """
    said, wanted = ([word for word in phrase.strip().lower().split(" ") if word not in DETERMINERS] for phrase in (text, candidate))
    if not " ".join(said):
        return INVALID
    if ("'" in " ".join(said)) != ("'" in " ".join(wanted)):
        return 0
    return int(set(said) <= set(wanted) or set(wanted) <= set(said))

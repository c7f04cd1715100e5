"""What a column looks like: the facts from which its role may be guessed."""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from thrifty.data.rows import Table

LOOKED_AT = 5000
"""Values of a column that are looked at; enough to tell prose from classes."""

TEXT_NAMES = frozenset({
    "abstract", "article", "body", "caption", "claim", "comment", "content", "context", "description", "document",
    "email", "evidence", "headline", "hypothesis", "message", "paragraph", "passage", "phrase", "post", "premise",
    "prompt", "query", "question", "review", "sent", "sentence", "sms", "statement", "summary", "text", "title",
    "tweet", "utterance",
})  # fmt: skip
LABEL_NAMES = frozenset({
    "class", "class_id", "class_label", "gold_label", "label", "label_id", "labels", "target",
})  # fmt: skip
ID_NAMES = frozenset({
    "eid", "guid", "id", "ids", "idx", "index", "uid", "uuid",
})  # fmt: skip


@dataclass(frozen=True)
class Look:
    """One column: its name, the kind of its values, how many differ, how many words they have on average."""

    name: str
    kind: str  # "text", "int", "float", "bool", "list", "bytes", "path", "mapping", "empty" or "mixed"
    rows: int
    distinct: int
    words: float

    @property
    def is_id(self) -> bool:
        """Whether this column names rows rather than describing them."""
        if self.name.lower() in LABEL_NAMES:
            return False
        numbers_rows = self.kind == "int" and self.distinct == self.rows > 2
        return numbers_rows or bool(ID_NAMES & {*parts(self.name)}) or self.name.startswith("column ")

    @property
    def is_prose(self) -> bool:
        """Whether the values read like sentences: several words, and seldom the same twice."""
        return self.kind == "text" and (self.words >= 6 or (self.words >= 3 and 2 * self.distinct >= self.rows))

    @property
    def is_text(self) -> bool:
        """Whether this may be a text to classify: by its name ("sentence1", "text_a"), or because it reads like one."""
        named = [part for part in parts(self.name) if len(part) > 1]
        if self.is_id or self.kind not in ("text", "mixed", "empty"):
            return False
        return self.is_prose or bool(named and named[-1] in TEXT_NAMES)

    @property
    def is_class(self) -> bool:
        """Whether the values could be classes: few different ones, each three times or more on average."""
        return self.kind in ("text", "int", "bool") and not self.is_id and not self.is_prose and 3 * self.distinct <= self.rows


def look(table: Table) -> dict[str, Look]:
    """Every column of ``table``, described."""
    return {name: look_at(name, values) for name, values in table.items()}


def look_at(name: str, values: list[Any]) -> Look:
    """Describe one column by its first values. Numbers written as strings, as in CSV, count as numbers."""
    some = [value for value in values[:LOOKED_AT] if value is not None and value != ""]
    kind = kind_of(some)
    texts = [str(value) for value in some] if kind != "bytes" else []
    words = sum(len(text.split()) for text in texts) / max(1, len(texts))
    return Look(name, kind, len(some), len(set(texts)), words)


def kind_of(values: list[Any]) -> str:
    """The kind of nine in ten of ``values``, or "mixed". The few others are faults to report later, row by row."""
    if not values:
        return "empty"
    for kind, fits in KINDS.items():
        if 10 * sum(map(fits, values)) >= 9 * len(values):
            return kind
    return "mixed"


def is_number(value: Any) -> bool:
    """Whether ``value`` is a number or the writing of one; "nan" and "inf" are, but no word of a text is."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def is_finite(value: Any) -> bool:
    """Whether ``value`` is a finite number or the writing of one."""
    return is_number(value) and math.isfinite(float(value))


def parts(name: str) -> Iterable[str]:
    """The words of a column's name without digits: "span1_text" and "spanText" are span, text."""
    return [part.lower() for part in re.split(r"[^A-Za-z]+|(?<=[a-z])(?=[A-Z])", name) if part]


def is_image_value(value: Any) -> bool:
    """Whether ``value`` holds an image as bytes, alone or in the struct that `datasets` writes."""
    return isinstance(value, bytes) or (isinstance(value, dict) and set(value) == {"bytes", "path"})


def is_image_path(value: Any) -> bool:
    """Whether ``value`` ends like the path of an image."""
    return isinstance(value, str) and re.search(r"\.(bmp|gif|jpe?g|png|ppm|tiff?|webp)$", value.lower()) is not None


def is_whole(value: Any) -> bool:
    """Whether ``value`` is an integer or the writing of one."""
    return isinstance(value, int) or (isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d+\s*", value) is not None)


KINDS: dict[str, Callable[[Any], bool]] = {
    "bytes": is_image_value,
    "bool": lambda value: isinstance(value, bool),
    "int": is_whole,
    "float": is_number,
    "list": lambda value: isinstance(value, list | tuple),
    "mapping": lambda value: isinstance(value, dict),
    "path": is_image_path,
    "text": lambda value: isinstance(value, str),
}

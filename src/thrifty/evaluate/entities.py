"""Named entities out of tags, and how many were found.

A tag is "O", or a letter and a type ("B-PER"). Tags are read as the shared task's own script and seqeval read them by
default: an "I" that no entity precedes begins one (E. F. Tjong Kim Sang and F. De Meulder, "Introduction to the
CoNLL-2003 shared task", CoNLL 2003). "E" and "S" (end, single) of the IOBES scheme are understood too.
"""
from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from thrifty.evaluate.weighing import Array, Counts, divide, settle, weigh

_TAG = re.compile(r"[BIES]-.+")


def is_entity_scheme(labels: Sequence[str]) -> bool:
    """Whether all labels are "O" or a letter B, I, E or S and a type, at least one being the latter."""
    rest = [label for label in labels if label != "O"]
    return bool(rest) and all(_TAG.fullmatch(label) for label in rest)


def find_entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, first token, last token) of each entity in one sequence of tags.

    >>> sorted(find_entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"]))
    [('LOC', 3, 3), ('LOC', 4, 4), ('PER', 0, 1)]
    """
    found = set()
    start, before, before_kind = 0, "O", ""
    for place, tag in enumerate([*tags, "O"]):
        letter, _, kind = tag.partition("-")
        begins = letter in ("B", "S") or before in ("E", "S") or kind != before_kind
        if before != "O" and (letter == "O" or begins):
            found.add((before_kind, start, place - 1))
        if letter != "O" and begins:
            start = place
        before, before_kind = letter, kind
    return found


def entity_f1(target: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]],
              counts: Counts | None = None) -> Array | float:
    """F1 over entities of all sequences together (micro): one counts only if its type and both its ends are right."""
    if any(len(t) != len(p) for t, p in zip(target, predicted, strict=True)):
        raise ValueError("a predicted sequence is not as long as its target")
    pairs = [(find_entities(t), find_entities(p)) for t, p in zip(target, predicted, strict=True)]
    both = np.array([len(t & p) for t, p in pairs], dtype=np.float64)
    either = np.array([len(t) + len(p) for t, p in pairs], dtype=np.float64)
    weights = weigh(counts, len(pairs))
    return settle(divide(2 * (weights @ both), weights @ either), counts)

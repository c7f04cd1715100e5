"""SQuAD's exact match and F1: written answers against all that are right, case, punctuation and articles aside.

P. Rajpurkar, J. Zhang, K. Lopyrev and P. Liang, "SQuAD: 100,000+ questions for machine comprehension of text", EMNLP 2016.
"""
from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """In lower case, without ASCII punctuation and articles, with single spaces."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def exact(text: str, answers: Sequence[str]) -> float:
    """1 if the text is one of the answers, else 0."""
    return float(normalise(text) in {normalise(answer) for answer in answers})


def overlap(text: str, answers: Sequence[str]) -> float:
    """The best F1 over words with any of the answers."""
    return max(_f1(Counter(normalise(text).split()), Counter(normalise(answer).split())) for answer in answers)


def _f1(said: Counter[str], wanted: Counter[str]) -> float:
    common = (said & wanted).total()
    return 2 * common / (said.total() + wanted.total()) if common else 0.0

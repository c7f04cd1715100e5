"""WNLI as a Winograd schema: which pronoun of a sentence does the second one replace, and by what?"""
from __future__ import annotations

import re
from itertools import combinations

from thrifty.formats.format import Unwritable

PRONOUNS = frozenset(("he", "she", "they", "it", "her", "his", "their", "them", "him"))


def find_referent(premise: str, hypothesis: str) -> tuple[str, str]:
    """``premise`` with one pronoun starred, and what ``hypothesis`` says in its place, without punctuation or genitive.

    Of all pronouns and all stretches of the hypothesis, that pair is taken around which most words agree; of several the one with
    most of them behind, then the one with the shortest stretch. A stretch whose neighbours do not agree on one side reaches to
    the end of the sentence there.

    Raises: Unwritable if no word agrees around any.
    """
    first, second = bare(premise), bare(hypothesis)
    best = (0, 0, 0, 0, 0, 0)
    for place in (place for place, word in enumerate(first) if word in PRONOUNS):
        for start, end in combinations(range(len(second) + 1), 2):
            left = alike(first[:place][::-1], second[:start][::-1])
            right = alike(first[place + 1:], second[end:])
            if (left or start == 0) and (right or end == len(second)) and second[start:end] != [first[place]]:
                best = max(best, (left + right, right, start - end, place, start, end))
    if not best[0]:
        raise Unwritable(f"no pronoun of {premise!r} is replaced in {hypothesis!r}")
    return highlight(premise, best[3]), trim(hypothesis, best[4], best[5])


def bare(sentence: str) -> list[str]:
    """Its words in lower case, without the mark at their end."""
    return [re.sub(r"[.,?!]$", "", word) for word in sentence.lower().split()]


def alike(words: list[str], others: list[str]) -> int:
    """With how many equal words both begin."""
    return next((at for at, (one, other) in enumerate(zip(words, others, strict=False)) if one != other),
                min(len(words), len(others)))


def highlight(sentence: str, place: int) -> str:
    """The sentence with word ``place`` between stars, a mark at its end parted from it."""
    words = sentence.split()
    word, mark = re.fullmatch(r"(.*?)([.,?!]?)", words[place]).groups()  # type: ignore[union-attr]
    return " ".join([*words[:place], f"*{word}*", *([mark] if mark else []), *words[place + 1:]])


def trim(sentence: str, start: int, end: int) -> str:
    """Words ``start`` to ``end`` from their last article on, without a mark or a genitive at the end."""
    words = sentence.split()[start:end]
    articles = [place for place, word in enumerate(words) if word.lower() in ("a", "an", "the")]
    phrase = " ".join(words[articles[-1]:] if articles else words)
    return re.sub(r"('s|')$", "", re.sub(r"[.,?!]$", "", phrase))

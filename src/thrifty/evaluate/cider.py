"""CIDEr: R. Vedantam, C. L. Zitnick, D. Parikh, "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015, arXiv:1411.5726.

What is printed under this name is what `pycocoevalcap` computes, which is the paper's CIDEr-D. For n-grams g of order n in
caption c, with tf_c(g) their count, df(g) the number of pictures with a reference that holds g, and N pictures:

    w_c(g) = tf_c(g) (log N - log max(1, df(g)))
    s_n(c, r) = sum_g min(w_c(g), w_r(g)) w_r(g) / (|w_c| |w_r|) · exp(-(l_c - l_r)² / (2 · 6²))
    CIDEr = 10 · mean over orders 1 .. 4 and over references r of s_n(c, r), averaged over pictures

l counts bigrams. Papers print 100 times this value, and so does `cider_statistic`. Without ``robust`` it is the paper's first form:
no clipping, no penalty of length; the paper also cuts words to their stems, which no program in use does.
"""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from thrifty.evaluate.ptb import cut
from thrifty.evaluate.weighing import Array, Counts, Statistic, mean

ORDERS = 4
SIGMA = 6.0
Grams = Counter[tuple[str, ...]]


class Vector:
    """A caption as weights of its n-grams, apart by order; ``norms`` [4] are their lengths, ``bigrams`` how many it has."""

    def __init__(self, counts: Grams, seen: Grams, pictures: int) -> None:
        self.weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDERS)]
        for gram, count in counts.items():
            self.weights[len(gram) - 1][gram] = count * (math.log(pictures) - math.log(max(1, seen[gram])))
        self.norms = [math.sqrt(sum(weight * weight for weight in of.values())) for of in self.weights]
        self.bigrams = sum(count for gram, count in counts.items() if len(gram) == 2)

    def likeness(self, other: Vector, robust: bool) -> float:
        """The mean over orders of s_n(self, other)."""
        found = 0.0
        for mine, theirs, a, b in zip(self.weights, other.weights, self.norms, other.norms, strict=True):
            if a and b:
                common = mine.keys() & theirs.keys()
                found += sum((min(mine[g], theirs[g]) if robust else mine[g]) * theirs[g] for g in common) / (a * b)
        penalty = math.exp(-((self.bigrams - other.bigrams) ** 2) / (2 * SIGMA**2)) if robust else 1.0
        return penalty * found / ORDERS


def cider_scores(predicted: Sequence[str], references: Sequence[Sequence[str]], robust: bool = True) -> Array:
    """One value per picture [n], 0 to 10, for the caption ``predicted`` of each and the captions that people gave it.

    How rare an n-gram is is learned from these references, so values of other sets of pictures are on other scales; for a single
    picture nothing is rare, and the value is 0.
    """
    written = [grams(cut(text)) for text in predicted]
    wanted = [[grams(cut(text)) for text in accepted] for accepted in references]
    seen: Grams = Counter(gram for accepted in wanted for gram in set().union(*accepted))
    found = []
    for counts, accepted in zip(written, wanted, strict=True):
        vector = Vector(counts, seen, len(wanted))
        alike = [vector.likeness(Vector(reference, seen, len(wanted)), robust) for reference in accepted]
        found.append(10 * sum(alike) / len(alike))
    return np.array(found, dtype=np.float64)


def cider_statistic(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> Statistic:
    """100 times CIDEr as a function of resampled pictures; how rare n-grams are stays what it is over all of them."""
    scores = 100 * cider_scores(predicted, references)

    def cider(counts: Counts) -> Array:
        return np.asarray(mean(scores, counts))

    return cider


def grams(words: Sequence[str]) -> Grams:
    """How often each n-gram of one to four words stands in a caption."""
    return Counter(tuple(words[i : i + n]) for n in range(1, ORDERS + 1) for i in range(len(words) - n + 1))

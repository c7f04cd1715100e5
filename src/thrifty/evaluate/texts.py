"""Metrics of written text against one or several references: BLEU, chrF and exact match.

Sentences are counted once, as `sacrebleu` counts them; a resample then only adds counts up.
BLEU: K. Papineni, S. Roukos, T. Ward and W.-J. Zhu, "BLEU: a method for automatic evaluation of machine translation", ACL 2002.
chrF: M. Popović, "chrF: character n-gram F-score for automatic MT evaluation", WMT 2015.
sacrebleu: M. Post, "A call for clarity in reporting BLEU scores", WMT 2018.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from thrifty.core.errors import Missing
from thrifty.evaluate.weighing import Array, Counts, Statistic, divide, mean

_ORDERS = 6     # chrF's character n-grams
_BETA = 2.0     # recall counts twice as much as precision


def need_sacrebleu() -> Any:
    """The module `sacrebleu`.

    Raises: Missing.
    """
    try:
        import sacrebleu
    except ImportError as error:
        raise Missing('generation is judged by sacrebleu: pip install "thrifty[generation]"') from error
    return sacrebleu


def exact_match(predicted: Sequence[str], references: Sequence[Sequence[str]], counts: Counts | None = None) -> Array | float:
    """The share of texts that equal one of their references, white space at the ends and between words aside."""
    found = [" ".join(text.split()) in {" ".join(reference.split()) for reference in accepted}
             for text, accepted in zip(predicted, references, strict=True)]
    return mean(found, counts)


def bleu_statistic(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> Statistic:
    """Corpus BLEU (0 to 100, tokenizer 13a, exponential smoothing), as a function of resampled sentences."""
    scorer = need_sacrebleu().metrics.BLEU(effective_order=True)
    rows = []
    for text, accepted in zip(predicted, references, strict=True):
        score = scorer.sentence_score(text, list(accepted))
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    table = np.array(rows, dtype=np.float64)

    def bleu(counts: Counts) -> Array:
        sums = counts @ table
        right, total, written, wanted = sums[:, :4], sums[:, 4:8], sums[:, 8], sums[:, 9]
        zeros = np.cumsum((right == 0) & (total > 0), axis=1)
        smoothed = np.where(right > 0, right, 0.5**zeros)   # the k-th order without a match counts 1/2^k matches
        logs = np.log(np.where(total > 0, divide(smoothed, total), 1.0)).mean(axis=1)
        brevity = np.where(written < wanted, np.exp(1 - divide(wanted, written)), 1.0)
        some = (right.sum(axis=1) > 0) & (total[:, -1] > 0)
        result: Array = np.where(some, 100 * brevity * np.exp(logs), 0.0)
        return result

    return bleu


def chrf_statistic(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> Statistic:
    """Corpus chrF2 (0 to 100), each sentence against the reference that suits it best, as a function of resampled sentences."""
    table = np.array([_best_overlap(text, accepted) for text, accepted in zip(predicted, references, strict=True)],
                     dtype=np.float64)

    def chrf(counts: Counts) -> Array:
        return _f_score(np.stack([counts @ table[:, part] for part in range(3)], axis=1))

    return chrf


def _best_overlap(text: str, references: Sequence[str]) -> Array:
    """[3, 6]: n-grams written, wanted, and common, per order, for the reference with the highest score."""
    written = _grams(text)
    tables = []
    for reference in references:
        wanted = _grams(reference)
        tables.append([[sum(a.values()) if b else 0 for a, b in zip(written, wanted, strict=True)],
                       [sum(g.values()) for g in wanted],
                       [sum((a & b).values()) for a, b in zip(written, wanted, strict=True)]])
    stacked = np.array(tables, dtype=np.float64)
    best: Array = stacked[int(_f_score(stacked).argmax())]
    return best


def _grams(text: str) -> list[Counter[str]]:
    letters = "".join(text.split())
    return [Counter(letters[at:at + n] for at in range(len(letters) - n + 1)) for n in range(1, _ORDERS + 1)]


def _f_score(overlap: Array) -> Array:
    """Overlaps [R, 3, 6] -> F in percent [R], the mean of precision and recall over the orders that both texts have."""
    written, wanted, common = overlap[:, 0], overlap[:, 1], overlap[:, 2]
    both = (written > 0) & (wanted > 0)
    orders = both.sum(axis=1).astype(np.float64)
    precision = divide((divide(common, written) * both).sum(axis=1), orders)
    recall = divide((divide(common, wanted) * both).sum(axis=1), orders)
    return 100 * divide((1 + _BETA**2) * precision * recall, _BETA**2 * precision + recall)

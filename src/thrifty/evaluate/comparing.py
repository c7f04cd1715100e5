"""Is one set of predictions better than another on the same items?"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from thrifty.evaluate.intervals import ROUNDS, percentiles, resample
from thrifty.evaluate.weighing import Counts, Statistic

Verdict = Literal["a better", "b better", "cannot tell apart"]


@dataclass(frozen=True)
class Comparison:
    """a minus b, its interval, and what it allows to say."""

    difference: float
    low: float
    high: float
    verdict: Verdict


def compare(a: Statistic, b: Statistic, n: int, seed: int = 0, rounds: int = ROUNDS, level: float = 0.95,
            groups: NDArray[np.int64] | None = None, draws: Iterable[Counts] | None = None) -> Comparison:
    """The paired bootstrap: both statistics (higher is better) on the same resamples of the same n items, or of ``groups`` of them.

    P. Koehn, "Statistical significance tests for machine translation evaluation", EMNLP 2004. The verdict names a winner only
    if the interval of the difference does not hold 0. ``draws`` are other resamples than those of ``resample(n, seed, rounds)``.
    """
    everything = np.ones((1, n))
    difference = float(a(everything)[0] - b(everything)[0])
    draws = resample(n, seed, rounds, groups) if draws is None else draws
    low, high = percentiles(np.concatenate([a(counts) - b(counts) for counts in draws]), level)
    verdict: Verdict = "a better" if low > 0 else "b better" if high < 0 else "cannot tell apart"
    return Comparison(difference, low, high, verdict)

"""How sure a number is: over test items by the bootstrap, for a share by Wilson, over seeds by Student."""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from thrifty.evaluate.weighing import Array, Counts, Statistic

ROUNDS = 2000
_CELLS = 2_000_000  # counts held at once


def bootstrap(statistic: Statistic, n: int, seed: int = 0, rounds: int = ROUNDS, level: float = 0.95,
              groups: NDArray[np.int64] | None = None) -> tuple[float, float]:
    """The percentile interval of ``statistic`` over resamples of n items, drawn with replacement; ``groups`` as wholes.

    B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics, 1979.
    ``statistic`` takes counts [R, n], how often each item was drawn, and gives [R] values.
    """
    return percentiles(np.concatenate([statistic(counts) for counts in resample(n, seed, rounds, groups)]), level)


def resample(n: int, seed: int, rounds: int = ROUNDS, groups: NDArray[np.int64] | None = None) -> Iterator[Counts]:
    """``rounds`` resamples of n items as counts [R, n], a few at a time so that memory stays small.

    ``groups`` [n] numbers the group of each item from 0: items that are no independent draws, such as answers to one question, are
    drawn together.
    """
    if n < 1:
        raise ValueError("no items to resample")
    if groups is not None:
        for counts in resample(int(groups.max()) + 1, seed, rounds):
            yield counts[:, groups]
        return
    random = np.random.default_rng(seed)
    step = max(1, _CELLS // n)
    for start in range(0, rounds, step):
        size = min(step, rounds - start)
        drawn = random.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def percentiles(values: Array, level: float = 0.95) -> tuple[float, float]:
    """The middle ``level`` of the values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson(right: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The score interval of a share, which is never empty and never leaves [0, 1].

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA, 1927.
    """
    if not 0 <= right <= n or n < 1:
        raise ValueError(f"{right} of {n} is no share")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean, and the ends of Student's interval for it ("Student", Biometrika, 1908); of one value (x, nan, nan)."""
    n = len(values)
    if n == 0:
        raise ValueError("no values")
    centre = float(np.mean(values))
    if n == 1:
        return centre, math.nan, math.nan
    half = student_quantile((1 + level) / 2, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return centre, centre - half, centre + half


def student_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t for a whole number of degrees of freedom, for probability > 1/2, by bisection."""
    wanted = 2 * probability - 1
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, freedom) < wanted else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _inside(angle: float, freedom: int) -> float:
    """P(|t| < sqrt(freedom) tan(angle)), a finite sum (Abramowitz and Stegun, 1964, 26.7.3 and 26.7.4)."""
    cosine, sine = math.cos(angle), math.sin(angle)
    if freedom % 2:
        term, total = cosine, 0.0
        for k in range(1, (freedom - 1) // 2 + 1):
            total += term
            term *= cosine * cosine * 2 * k / (2 * k + 1)
        return 2 / math.pi * (angle + sine * total)
    term, total = 1.0, 0.0
    for k in range(1, freedom // 2 + 1):
        total += term
        term *= cosine * cosine * (2 * k - 1) / (2 * k)
    return sine * total

"""How sure a number is: over test items by the bootstrap, for a share by Wilson, over seeds by Student."""
from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from thrifty.evaluate.weighing import Array, Counts, Statistic

ROUNDS = 2000
_CELLS = 2_000_000  # counts held at once


def bootstrap(statistic: Statistic, n: int, seed: int = 0, rounds: int = ROUNDS, level: float = 0.95,
              groups: NDArray[np.int64] | None = None, draws: Iterable[Counts] | None = None) -> tuple[float, float]:
    """The percentile interval of ``statistic`` over resamples of n items, drawn with replacement; ``groups`` as wholes.

    B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics, 1979.
    ``statistic`` takes counts [R, n], how often each item was drawn, and gives [R] values. ``draws`` are other resamples than
    those of ``resample(n, seed, rounds)``.
    """
    draws = resample(n, seed, rounds, groups) if draws is None else draws
    return percentiles(np.concatenate([statistic(counts) for counts in draws]), level)


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
        yield _draw(random, min(step, rounds - start), n)


def resample_within(strata: Sequence[tuple[Sequence[int], NDArray[np.int64] | None]], seed: int,
                    rounds: int = ROUNDS) -> Iterator[Counts]:
    """As ``resample``, but each stratum is resampled on its own and so keeps its size.

    A stratum is the places of its items in [0, n), and perhaps ``groups`` of them that are drawn together.
    """
    n = sum(len(places) for places, _ in strata)
    randoms = [np.random.default_rng([seed, i]) for i in range(len(strata))]
    step = max(1, _CELLS // n)
    for start in range(0, rounds, step):
        counts = np.zeros((min(step, rounds - start), n))
        for random, (places, groups) in zip(randoms, strata, strict=True):
            drawn = _draw(random, len(counts), len(places) if groups is None else int(groups.max()) + 1)
            counts[:, places] = drawn if groups is None else drawn[:, groups]
        yield counts


def _draw(random: np.random.Generator, rounds: int, n: int) -> Counts:
    drawn = random.integers(0, n, (rounds, n)) + n * np.arange(rounds)[:, None]
    return np.bincount(drawn.ravel(), minlength=rounds * n).reshape(rounds, n).astype(np.float64)


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

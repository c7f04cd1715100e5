"""Intervals against scipy and against what they promise; comparisons that do and do not name a winner."""
from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from thrifty import evaluate
from thrifty.evaluate.intervals import resample, student_quantile
from thrifty.evaluate.weighing import Counts, mean


@pytest.mark.parametrize(("right", "n"), [(0, 7), (7, 7), (3, 10), (871, 1000)])
def test_wilson(right: int, n: int) -> None:
    wanted = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert evaluate.wilson(right, n) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


@pytest.mark.parametrize("wrong", [(-1, 5), (6, 5), (0, 0)])
def test_no_share(wrong: tuple[int, int]) -> None:
    with pytest.raises(ValueError):
        evaluate.wilson(*wrong)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 10, 31, 200])
@pytest.mark.parametrize("probability", [0.8, 0.975, 0.995])
def test_student(freedom: int, probability: float) -> None:
    assert student_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-9)


def test_interval_over_seeds() -> None:
    values = [0.81, 0.84, 0.79]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert evaluate.mean_interval(values) == pytest.approx((np.mean(values), low, high))
    centre, *ends = evaluate.mean_interval([0.5])
    assert centre == 0.5 and all(map(math.isnan, ends))
    with pytest.raises(ValueError):
        evaluate.mean_interval([])


def test_resamples_draw_n_items_each_and_all_alike() -> None:
    counts = np.concatenate(list(resample(30, seed=1, rounds=4000)))
    assert counts.shape == (4000, 30) and (counts.sum(axis=1) == 30).all()
    assert np.abs(counts.mean(axis=0) - 1).max() < 0.1 and counts.var(axis=0).mean() == pytest.approx(29 / 30, rel=0.05)


def test_bootstrap_of_a_mean_is_near_the_normal_interval() -> None:
    values = np.random.default_rng(2).normal(size=400)
    low, high = evaluate.bootstrap(lambda counts: np.asarray(mean(values, counts)), 400, seed=0)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.012)
    assert (low, high) == evaluate.bootstrap(lambda counts: np.asarray(mean(values, counts)), 400, seed=0)
    assert (low, high) != evaluate.bootstrap(lambda counts: np.asarray(mean(values, counts)), 400, seed=1)


def test_bootstrap_of_many_items_goes_in_parts() -> None:
    sizes: list[int] = []

    def statistic(counts: Counts) -> np.ndarray:
        sizes.append(len(counts))
        return counts[:, 0]

    evaluate.bootstrap(statistic, 100_000, rounds=50)
    assert sum(sizes) == 50 and max(sizes) == 20


def test_bootstrap_of_nothing() -> None:
    with pytest.raises(ValueError):
        evaluate.bootstrap(lambda counts: counts[:, 0], 0)


def test_a_winner_is_named_only_if_the_interval_excludes_zero() -> None:
    random = np.random.default_rng(3)
    truth = random.integers(0, 2, 300)
    good = np.where(random.random(300) < 0.9, truth, 1 - truth)
    poor = np.where(random.random(300) < 0.6, truth, 1 - truth)

    def score(guess: np.ndarray) -> evaluate.weighing.Statistic:
        return lambda counts: np.asarray(evaluate.accuracy(truth, guess, counts))

    found = evaluate.compare(score(good), score(poor), 300)
    assert found.verdict == "a better" and found.low > 0
    assert found.difference == pytest.approx((good == truth).mean() - (poor == truth).mean())
    assert evaluate.compare(score(poor), score(good), 300).verdict == "b better"
    same = evaluate.compare(score(good), score(good), 300)
    assert same.verdict == "cannot tell apart" and same.difference == same.low == same.high == 0


def test_pairing_sees_what_two_intervals_do_not() -> None:
    """A small gain on the same items is certain although each score alone is not."""
    truth = np.zeros(500, dtype=int)
    before = (np.arange(500) % 2).astype(int)
    after = before.copy()
    after[1:41:2] = 0

    def score(guess: np.ndarray) -> evaluate.weighing.Statistic:
        return lambda counts: np.asarray(evaluate.accuracy(truth, guess, counts))

    assert evaluate.bootstrap(score(after), 500)[0] < evaluate.bootstrap(score(before), 500)[1]
    assert evaluate.compare(score(after), score(before), 500).verdict == "a better"

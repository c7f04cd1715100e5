"""Metrics against scikit-learn, scipy and hand-made cases; resampled values against copies of the drawn items."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from thrifty import evaluate

RANDOM = np.random.default_rng(0)
N, CLASSES = 200, 5
TARGET = RANDOM.integers(0, CLASSES - 1, N)                                      # the last class occurs in predictions only
PROBABILITIES = RANDOM.dirichlet(np.ones(CLASSES) * 0.4, N) * 0.6 + 0.4 * np.eye(CLASSES)[TARGET]
GUESSED = PROBABILITIES.argmax(axis=1)
GUESSED[:40] = RANDOM.integers(0, CLASSES, 40)
NUMBERS, NEAR = np.round(RANDOM.normal(size=N), 1), np.round(RANDOM.normal(size=N), 1)   # rounded, so that there are ties
NEAR += NUMBERS


def copies(function: Callable[..., Any], a: Any, b: Any, counts: Any) -> list[float]:
    """The metric over each resample written out, item by item."""
    return [function(np.repeat(a, row.astype(int), axis=0), np.repeat(b, row.astype(int), axis=0)) for row in counts]


def ece(target: Any, probabilities: Any) -> float:
    """Calibration error by its definition, one item after the other."""
    bins: dict[int, list[tuple[bool, float]]] = {}
    for answer, row in zip(target, probabilities, strict=True):
        place = next(k for k in range(15) if row.max() <= (k + 1) / 15 or k == 14)
        bins.setdefault(place, []).append((int(row.argmax()) == answer, float(row.max())))
    gaps = [abs(np.mean([r for r, _ in items]) - np.mean([c for _, c in items])) * len(items) for items in bins.values()]
    return float(sum(gaps) / len(target))


CASES = {
    "accuracy": (evaluate.accuracy, metrics.accuracy_score, TARGET, GUESSED),
    "macro_f1": (evaluate.macro_f1, lambda t, p: metrics.f1_score(t, p, average="macro"), TARGET, GUESSED),
    "matthews": (evaluate.matthews, metrics.matthews_corrcoef, TARGET, GUESSED),
    "binary matthews": (evaluate.matthews, metrics.matthews_corrcoef, TARGET % 2, GUESSED % 2),
    "likelihood": (evaluate.negative_log_likelihood, lambda t, p: metrics.log_loss(t, p, labels=range(CLASSES)),
                   TARGET, PROBABILITIES),
    "brier": (evaluate.brier, lambda t, p: np.mean(np.sum((np.eye(CLASSES)[t] - p) ** 2, axis=1)), TARGET, PROBABILITIES),
    "calibration": (evaluate.expected_calibration_error, ece, TARGET, PROBABILITIES),
    "mse": (evaluate.mse, metrics.mean_squared_error, NUMBERS, NEAR),
    "mae": (evaluate.mae, metrics.mean_absolute_error, NUMBERS, NEAR),
    "pearson": (evaluate.pearson, lambda a, b: stats.pearsonr(a, b)[0], NUMBERS, NEAR),
    "spearman": (evaluate.spearman, lambda a, b: stats.spearmanr(a, b)[0], NUMBERS, NEAR),
}


@pytest.mark.parametrize("case", CASES)
def test_metrics_agree_with_an_independent_one(case: str) -> None:
    ours, theirs, a, b = CASES[case]
    assert ours(a, b) == pytest.approx(theirs(a, b), abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_counting_draws_is_copying_items(case: str) -> None:
    ours, theirs, a, b = CASES[case]
    counts = RANDOM.multinomial(N, np.full(N, 1 / N), size=5).astype(float)
    assert ours(a, b, counts) == pytest.approx(copies(theirs, a, b, counts), abs=1e-9)


@pytest.mark.parametrize(("function", "a", "b"), [
    (evaluate.matthews, [0, 1, 0], [1, 1, 1]), (evaluate.matthews, [1, 1, 1], [0, 1, 0]),
    (evaluate.pearson, [0.1, 0.2, 0.3], [0.7, 0.7, 0.7]), (evaluate.spearman, [1.0, 1.0, 1.0], [3.0, 1.0, 2.0]),
])
def test_a_constant_side_has_no_correlation(function: Any, a: list[float], b: list[float]) -> None:
    assert function(a, b) == 0.0


def test_large_offsets_do_not_hide_a_correlation() -> None:
    small = np.array([1.0, 2.0, 3.0, 5.0])
    assert evaluate.pearson(small + 1e6, small) == pytest.approx(1.0)


def test_a_certain_mistake_costs_much_but_not_everything() -> None:
    assert evaluate.negative_log_likelihood([0], [[0.0, 1.0]]) == pytest.approx(-np.log(1e-12))


def test_reliability_bins() -> None:
    bins = evaluate.calibration_bins([0, 1, 1], [[0.8, 0.2], [0.2, 0.8], [0.52, 0.48]], bins=10)
    assert [(row["items"], row["accuracy"]) for row in bins if row["items"]] == [(1, 0.0), (2, 1.0)]
    assert bins[7]["confidence"] == pytest.approx(0.8) and bins[7]["high"] == pytest.approx(0.8)
    assert bins[0]["accuracy"] is None and len(bins) == 10


@pytest.mark.parametrize(("function", "a", "b"), [
    (evaluate.accuracy, [0, 1], [0]), (evaluate.accuracy, [], []), (evaluate.mse, [1.0], [1.0, 2.0]),
    (evaluate.brier, [0, 1], [[0.5, 0.5]]),
])
def test_what_does_not_pair_is_refused(function: Any, a: Any, b: Any) -> None:
    with pytest.raises(ValueError):
        function(a, b)


@pytest.mark.parametrize(("tags", "found"), [
    ("B-PER I-PER O B-LOC", {("PER", 0, 1), ("LOC", 3, 3)}),
    ("B-PER B-PER", {("PER", 0, 0), ("PER", 1, 1)}),
    ("I-PER I-PER O", {("PER", 0, 1)}),                              # an I that nothing precedes begins one
    ("B-PER I-LOC", {("PER", 0, 0), ("LOC", 1, 1)}),                 # so does an I of another type
    ("I-LOC B-LOC I-LOC", {("LOC", 0, 0), ("LOC", 1, 2)}),
    ("O O", set()), ("B-A", {("A", 0, 0)}),
    ("B-A I-A E-A S-A", {("A", 0, 2), ("A", 3, 3)}),
    ("S-A I-A", {("A", 0, 0), ("A", 1, 1)}),
    ("B-A-B I-A-B", {("A-B", 0, 1)}),
])
def test_entities(tags: str, found: set[tuple[str, int, int]]) -> None:
    assert evaluate.find_entities(tags.split()) == found


def test_entity_f1_by_hand() -> None:
    target = [["B-PER", "I-PER", "O"], ["B-LOC", "O", "B-LOC"]]
    guess = [["B-PER", "I-PER", "O"], ["B-LOC", "I-LOC", "O"]]
    assert evaluate.entity_f1(target, guess) == pytest.approx(2 * 1 / (3 + 2))      # one of two found, of three wanted
    twice = evaluate.entity_f1(target, guess, np.array([[2.0, 0.0], [0.0, 2.0]]))
    assert list(np.asarray(twice)) == pytest.approx([1.0, 0.0])
    assert evaluate.entity_f1([["O"]], [["O"]]) == 0.0
    with pytest.raises(ValueError):
        evaluate.entity_f1([["O", "O"]], [["O"]])

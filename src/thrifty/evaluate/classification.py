"""Metrics of classification. ``target`` and ``predicted`` hold class numbers [n], ``probabilities`` one row per item [n, C]."""
from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thrifty.evaluate.weighing import Array, Counts, divide, mean, settle, tally, weigh

SMALLEST = 1e-12  # a probability of 0 for what did happen costs 27.6 nats, not infinity


def accuracy(target: ArrayLike, predicted: ArrayLike, counts: Counts | None = None) -> Array | float:
    """The share of items whose class was predicted."""
    t, p = _classes(target, predicted)
    return mean(t == p, counts)


def macro_f1(target: ArrayLike, predicted: ArrayLike, counts: Counts | None = None) -> Array | float:
    """The mean over classes of F1 = 2 TP / (2 TP + FP + FN), over the classes that occur in target or prediction."""
    t, p = _classes(target, predicted)
    weights = weigh(counts, len(t))
    true, guessed, right, _ = _sums(t, p, weights)
    seen = true + guessed
    return settle(divide(divide(2 * right, seen).sum(axis=1), (seen > 0).sum(axis=1).astype(np.float64)), counts)


def matthews(target: ArrayLike, predicted: ArrayLike, counts: Counts | None = None) -> Array | float:
    """Matthews correlation for any number of classes; 0 where target or prediction is constant.

    J. Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", Computational Biology and
    Chemistry, 2004.
    """
    t, p = _classes(target, predicted)
    weights = weigh(counts, len(t))
    true, guessed, right, n = _sums(t, p, weights)
    covariance = right.sum(axis=1) * n - (true * guessed).sum(axis=1)
    spread = np.sqrt((n**2 - (guessed**2).sum(axis=1)) * (n**2 - (true**2).sum(axis=1)))
    return settle(divide(covariance, spread), counts)


def negative_log_likelihood(target: ArrayLike, probabilities: ArrayLike, counts: Counts | None = None) -> Array | float:
    """The mean of -ln p(target), in nats, with p no smaller than 1e-12."""
    t, rows = _rows(target, probabilities)
    return mean(-np.log(np.maximum(rows[np.arange(len(t)), t], SMALLEST)), counts)


def brier(target: ArrayLike, probabilities: ArrayLike, counts: Counts | None = None) -> Array | float:
    """The mean squared distance between a row of probabilities and the row that puts 1 on the target; 0 to 2.

    G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review, 1950.
    """
    t, rows = _rows(target, probabilities)
    truth = np.zeros_like(rows)
    truth[np.arange(len(t)), t] = 1.0
    return mean(((rows - truth) ** 2).sum(axis=1), counts)


def _classes(target: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    t, p = np.asarray(target, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    if t.shape != p.shape or t.ndim != 1:
        raise ValueError(f"targets of shape {t.shape} and predictions of shape {p.shape} do not pair")
    return t, p


def _rows(target: ArrayLike, probabilities: ArrayLike) -> tuple[NDArray[np.int64], Array]:
    t, rows = np.asarray(target, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)
    if rows.ndim != 2 or len(rows) != len(t):
        raise ValueError(f"targets of shape {t.shape} and probabilities of shape {rows.shape} do not pair")
    return t, rows


def _sums(t: NDArray[np.int64], p: NDArray[np.int64], weights: Counts) -> tuple[Array, Array, Array, Array]:
    """Per resample and class: how often true, guessed, and both [R, C]; and the number of items [R]."""
    size = int(max(t.max(), p.max())) + 1
    right = tally(t, size, weights, (t == p).astype(np.float64))
    return tally(t, size, weights), tally(p, size, weights), right, weights.sum(axis=1)

"""Metrics of classes that were read from written text. A text that names no class is class -1, and is wrong wherever it counts."""
from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thrifty.evaluate.weighing import Array, Counts, divide, mean, ratio, settle, tally, weigh


def named(predicted: ArrayLike, counts: Counts | None = None) -> Array | float:
    """The share of texts that name a class."""
    return mean(np.asarray(predicted) >= 0, counts)


def binary_f1(target: ArrayLike, predicted: ArrayLike, counts: Counts | None = None) -> Array | float:
    """F1 = 2 TP / (2 TP + FP + FN) of class 1 of two, 0 where there is neither; no class counts as the wrong one."""
    t = np.asarray(target, dtype=np.int64)
    p = np.where(np.isin(predicted, (0, 1)), predicted, 1 - t)
    return ratio(2.0 * ((t == 1) & (p == 1)), (t == 1).astype(np.float64) + (p == 1), counts)


def macro_f1(target: ArrayLike, predicted: ArrayLike, classes: int, counts: Counts | None = None) -> Array | float:
    """The mean over the classes that occur of F1; no class is none of them, but a miss."""
    t, p = np.asarray(target, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    weights = weigh(counts, len(t))
    p = np.where(p < 0, classes, p)
    true, guessed, right = (tally(groups, classes + 1, weights, items)[:, :classes]
                            for groups, items in ((t, None), (p, None), (t, (t == p).astype(np.float64))))
    seen = true + guessed
    return settle(divide(divide(2 * right, seen).sum(axis=1), (seen > 0).sum(axis=1).astype(np.float64)), counts)


def group_match(right: ArrayLike, groups: NDArray[np.int64], counts: Counts | None = None) -> Array | float:
    """The share of ``groups`` (numbered from 0) all of whose items are right. Resamples must draw whole groups."""
    found = np.ones(int(groups.max()) + 1)
    np.minimum.at(found, groups, np.asarray(right, dtype=np.float64))
    first = np.unique(groups, return_index=True)[1]
    return mean(found, None if counts is None else counts[:, first])


def number_groups(names: ArrayLike) -> NDArray[np.int64]:
    """Equal names as equal numbers from 0, in order of their first place."""
    _, first, inverse = np.unique(np.asarray(names), return_index=True, return_inverse=True)
    order = np.empty(len(first), dtype=np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    numbers: NDArray[np.int64] = order[inverse.reshape(-1)]
    return numbers

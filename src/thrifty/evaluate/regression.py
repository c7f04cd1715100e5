"""Metrics of regression, over numbers ``target`` [n] and ``predicted`` [n]."""
from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from thrifty.evaluate.weighing import Array, Counts, divide, mean, settle, weigh


def mse(target: ArrayLike, predicted: ArrayLike, counts: Counts | None = None) -> Array | float:
    """Mean squared error, in squared units of the target."""
    t, p = _numbers(target, predicted)
    return mean((t - p) ** 2, counts)


def mae(target: ArrayLike, predicted: ArrayLike, counts: Counts | None = None) -> Array | float:
    """Mean absolute error, in units of the target."""
    t, p = _numbers(target, predicted)
    return mean(np.abs(t - p), counts)


def pearson(target: ArrayLike, predicted: ArrayLike, counts: Counts | None = None) -> Array | float:
    """Pearson's correlation; 0 where either side is constant."""
    t, p = _numbers(target, predicted)
    weights = weigh(counts, len(t))
    return settle(_correlate(t[None], p[None], weights), counts)


def spearman(target: ArrayLike, predicted: ArrayLike, counts: Counts | None = None) -> Array | float:
    """Pearson's correlation of the ranks, ties sharing their mean rank; 0 where either side is constant."""
    t, p = _numbers(target, predicted)
    weights = weigh(counts, len(t))
    return settle(_correlate(_rank(t, weights), _rank(p, weights), weights), counts)


def _numbers(target: ArrayLike, predicted: ArrayLike) -> tuple[Array, Array]:
    t, p = np.asarray(target, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if t.shape != p.shape or t.ndim != 1:
        raise ValueError(f"targets of shape {t.shape} and predictions of shape {p.shape} do not pair")
    return t, p


def _correlate(x: Array, y: Array, weights: Counts) -> Array:
    """Correlation per resample of values [1 or R, n]."""
    n = weights.sum(axis=1, keepdims=True)
    dx = x - (weights * x).sum(axis=1, keepdims=True) / n
    dy = y - (weights * y).sum(axis=1, keepdims=True) / n
    xx, yy, xy = ((weights * a * b).sum(axis=1) for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    tiny = 1e-24 * n[:, 0]  # below this, what is left of a constant is rounding
    flat = (xx <= tiny * np.square(x).max()) | (yy <= tiny * np.square(y).max())
    return np.where(flat, 0.0, divide(xy, np.sqrt(xx * yy)))


def _rank(values: Array, weights: Counts) -> Array:
    """The mean rank of each item among the drawn ones, per resample [R, n]."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    drawn = np.add.reduceat(weights[:, order], starts, axis=1)
    middle: Array = np.cumsum(drawn, axis=1) - (drawn - 1) / 2
    return middle[:, group]

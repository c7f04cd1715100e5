"""Statistics of resampled items, written with how often each item was drawn instead of with copies of it."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Counts = Array                              # [R, n], each row sums to n: R resamples of n items
Statistic = Callable[[Counts], Array]       # -> [R]


def weigh(counts: Counts | None, n: int) -> Counts:
    """``counts``, or one resample that draws every item once.

    Raises: ValueError if there are no items, or counts for another number of them.
    """
    if n == 0:
        raise ValueError("a metric over no items has no value")
    if counts is None:
        return np.ones((1, n))
    if counts.ndim != 2 or counts.shape[1] != n:
        raise ValueError(f"counts of shape {counts.shape} do not fit {n} items")
    return counts


def settle(values: Array, counts: Counts | None) -> Array | float:
    """The values of the resamples, or the one number where nothing was resampled."""
    return float(values[0]) if counts is None else values


def mean(values: ArrayLike, counts: Counts | None = None) -> Array | float:
    """The mean of one number per item."""
    items = np.asarray(values, dtype=np.float64)
    weights = weigh(counts, len(items))
    return settle(weights @ items / weights.sum(axis=1), counts)


def ratio(above: ArrayLike, below: ArrayLike, counts: Counts | None = None) -> Array | float:
    """The sum of one number over the sum of another, 0 where both sums are 0."""
    top, bottom = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    weights = weigh(counts, len(top))
    return settle(divide(weights @ top, weights @ bottom), counts)


def divide(above: Array, below: Array) -> Array:
    """above / below, and 0 where ``below`` is 0."""
    return np.divide(above, below, out=np.zeros(np.broadcast_shapes(above.shape, below.shape)), where=below != 0)


def tally(groups: NDArray[np.int64], size: int, weights: Counts, items: Array | None = None) -> Array:
    """Drawn items (or the sum of ``items`` over them) in each of ``size`` groups -> [R, size]."""
    member = np.zeros((len(groups), size))
    member[np.arange(len(groups)), groups] = 1.0 if items is None else items
    return weights @ member

"""Does a confidence of 80 % mean right four times in five?

M. P. Naeini, G. F. Cooper and M. Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015;
C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017.
"""
from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thrifty.evaluate.weighing import Array, Counts, settle, tally, weigh

BINS = 15


class Bin(TypedDict):
    """Items whose highest probability lies in (low, high]."""

    low: float
    high: float
    items: int
    confidence: float | None    # mean highest probability; null for an empty bin
    accuracy: float | None


def expected_calibration_error(target: ArrayLike, probabilities: ArrayLike, counts: Counts | None = None,
                               bins: int = BINS) -> Array | float:
    """The mean over items of |accuracy - confidence| of their bin; bins of equal width over the highest probability."""
    place, confidence, right = _place(target, probabilities, bins)
    weights = weigh(counts, len(place))
    gaps = tally(place, bins, weights, right - confidence)
    return settle(np.abs(gaps).sum(axis=1) / weights.sum(axis=1), counts)


def calibration_bins(target: ArrayLike, probabilities: ArrayLike, bins: int = BINS) -> list[Bin]:
    """What a reliability diagram draws, from the lowest confidence to the highest."""
    place, confidence, right = _place(target, probabilities, bins)
    found: list[Bin] = []
    for number in range(bins):
        inside = place == number
        found.append({"low": number / bins, "high": (number + 1) / bins, "items": int(inside.sum()),
                      "confidence": float(confidence[inside].mean()) if inside.any() else None,
                      "accuracy": float(right[inside].mean()) if inside.any() else None})
    return found


def _place(target: ArrayLike, probabilities: ArrayLike, bins: int) -> tuple[NDArray[np.int64], Array, Array]:
    rows = np.asarray(probabilities, dtype=np.float64)
    confidence = rows.max(axis=1)
    right = (rows.argmax(axis=1) == np.asarray(target)).astype(np.float64)
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1), confidence, right

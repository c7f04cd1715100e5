"""Singular values and directions of features, up to their rank; principal components."""
from __future__ import annotations

import numpy as np

from thrifty.rank.reading import Array, centre


def decompose(rows: Array) -> tuple[Array, Array]:
    """Singular values [k], largest first, and right singular vectors [k, D] of ``rows`` [N, D]; k is the rank. O(N D min(N, D)).

    Tall arrays are reduced to the triangle of a QR factorisation: half the work of a full decomposition, and small singular
    values keep the precision that a decomposition of the D x D products would lose.
    """
    tall = len(rows) > rows.shape[1]
    _, sizes, directions = np.linalg.svd(np.linalg.qr(rows, mode="r") if tall else rows, full_matrices=False)
    kept = int(np.count_nonzero(sizes > sizes[0] * max(rows.shape) * np.finfo(np.float64).eps))
    return sizes[:kept], directions[:kept]


def principal(rows: Array, dimensions: int | None = None, share: float | None = None) -> tuple[Array, Array]:
    """Principal components [N, p] and their variances [p] (over N - 1), largest first.

    p is min(N, D), or ``dimensions`` if that is less; with ``share``, the fewest that hold more than that share of the variance.
    Components beyond the rank are exactly 0. Signs are such that the heaviest loading of each is positive.
    """
    centred = centre(rows)
    sizes, directions = decompose(centred)
    heaviest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1, keepdims=True), axis=1)
    directions = directions * np.sign(heaviest)
    variances, components = np.zeros(min(rows.shape)), np.zeros((len(rows), min(rows.shape)))
    variances[:len(sizes)] = sizes**2 / max(len(rows) - 1, 1)
    components[:, :len(sizes)] = centred @ directions.T
    if share is not None:
        dimensions = int(np.searchsorted(np.cumsum(variances), share * variances.sum(), side="right")) + 1
    return components[:, :dimensions], variances[:dimensions]

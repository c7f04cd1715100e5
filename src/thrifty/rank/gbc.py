"""GBC, the Gaussian Bhattacharyya coefficient: how much the classes overlap in feature space.

M. Pándy, A. Agostinelli, J. Uijlings, V. Ferrari and T. Mensink, "Transferability estimation using Bhattacharyya class
separability", CVPR 2022, arXiv 2111.12780.
"""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from thrifty.core.errors import BadData, NoSuchSetting, nearest
from thrifty.rank.reading import Array, Classes, read_classes, read_features
from thrifty.rank.score import Score
from thrifty.rank.spectrum import principal

COVARIANCES = ("diagonal", "spherical", "full")
Distances = Callable[[int], Array]  # class -> its distances to all classes [C]


def gbc(features: ArrayLike, labels: ArrayLike, *, covariance: str = "diagonal", dimensions: int | None = 64, floor: float = 1e-4,
        ddof: int = 0) -> Score:
    """-sum over ordered pairs of classes of exp(-D_B), with the classes as Gaussians and d the difference of two means:

        D_B = 1/8 d' S^-1 d + 1/2 log( |S| / sqrt(|S_i| |S_j|) ),   S = (S_i + S_j) / 2.

    ``features`` [N, D], ``labels`` [N] classes. Features of more than ``dimensions`` are reduced to so many principal
    components first (None: never). ``covariance``: "diagonal"; "spherical", one variance per class, the mean over dimensions,
    which counts once in the logarithm, as in the authors' code; "full". Variances are over N_c - ``ddof`` and, but for "full",
    at least ``floor``, so one row per class is fine. In [-C (C - 1), 0]: 0 is no overlap, constant features give the lower end.
    Where the score rounds to 0, ``details["log_overlap"]`` = log(-GBC) still tells models apart (lower is better). Unchanged by
    translation, and by scale while no variance is at the floor. O(N D + C^2 D), "full" O(C^2 D^3).

    Raises:
        BadData: arrays that do not fit, numbers that are not finite, a single class; with ``ddof=1`` a class of one row, with
            "full" a class whose covariance is singular.
        NoSuchSetting: a setting out of its range.
    """
    if covariance not in COVARIANCES:
        raise NoSuchSetting(f"no covariance={covariance!r}.{nearest(covariance, COVARIANCES)}")
    if ddof not in (0, 1) or floor <= 0 or (dimensions is not None and dimensions < 1):
        raise NoSuchSetting(f"ddof={ddof}, floor={floor}, dimensions={dimensions}: 0 or 1, above 0, at least 1 or None.")
    rows = read_features(features)
    classes = read_classes(labels, len(rows))
    if ddof and classes.sizes.min() < 2:
        raise BadData(f"class {classes.names[int(classes.sizes.argmin())]!r} has one row, which has no variance with ddof=1.")
    if dimensions is not None and rows.shape[1] > dimensions:
        rows, _ = principal(rows, dimensions)
    means = classes.means(rows)
    if covariance == "full":
        measure = _from_full(rows, means, classes, ddof)
    else:
        measure = _from_variances(rows, means, classes, ddof, floor, covariance == "spherical")
    distances = np.concatenate([np.delete(measure(k), k) for k in range(classes.count)])
    least = float(distances.min())
    overlap = float(np.exp(least - distances).sum())
    return Score(-overlap * float(np.exp(-least)), log_overlap=float(np.log(overlap)) - least, dimensions=rows.shape[1])


def _from_variances(rows: Array, means: Array, classes: Classes, ddof: int, floor: float, spherical: bool) -> Distances:
    freedom = np.maximum(classes.sizes - ddof, 1)[:, None]
    variances = np.maximum(classes.sums((rows - means[classes.codes]) ** 2) / freedom, floor)
    if spherical:
        variances = variances.mean(axis=1, keepdims=True)
    logs = np.log(variances).sum(axis=1)

    def measure(k: int) -> Array:
        between = (variances + variances[k]) / 2
        apart = ((means - means[k]) ** 2 / between).sum(axis=1)
        distances: Array = apart / 8 + np.log(between).sum(axis=1) / 2 - (logs + logs[k]) / 4
        return distances

    return measure


def _from_full(rows: Array, means: Array, classes: Classes, ddof: int) -> Distances:
    width = rows.shape[1]
    covariances, logs = np.empty((classes.count, width, width)), np.empty(classes.count)
    for k in range(classes.count):
        apart = rows[classes.codes == k] - means[k]
        covariances[k] = apart.T @ apart / (len(apart) - ddof)
        if np.linalg.matrix_rank(apart) < width:
            raise BadData(f"class {classes.names[k]!r} has {len(apart)} rows in {width} dimensions, and a singular covariance: "
                          'use covariance="diagonal" or fewer dimensions.')
        logs[k] = np.linalg.slogdet(covariances[k])[1]

    def measure(k: int) -> Array:
        between = (covariances + covariances[k]) / 2
        shift = means - means[k]
        apart = np.einsum("cd,cd->c", shift, np.linalg.solve(between, shift[:, :, None])[:, :, 0])
        distances: Array = apart / 8 + np.linalg.slogdet(between)[1] / 2 - (logs + logs[k]) / 4
        return distances

    return measure

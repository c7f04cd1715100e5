"""The evidence of linear models of the features, maximised over its two precisions.

For one target column t [N]: w ~ N(0, 1/alpha), t | F, w ~ N(F w, 1/beta), and

    log p(t | F) = 1/2 [ N log beta + D log alpha - N log 2 pi - beta |F m - t|^2 - alpha m'm - log |A| ],
    A = alpha I + beta F'F,  m = beta A^-1 F't.

The fixed point is that of K. You, Y. Liu, Z. Zhang, J. Wang, M. I. Jordan and M. Long, "Ranking and tuning pre-trained models: a
new paradigm for exploiting model hubs", JMLR 2022, arXiv 2110.10545, for all columns at once.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thrifty.core.errors import NoSuchSetting, nearest
from thrifty.rank.reading import Array, read_classes, read_features, read_targets
from thrifty.rank.spectrum import decompose

COMPATIBLE = ("thuml_fixed_point",)


@dataclass(frozen=True)
class Evidence:
    """For K columns: ``evidence`` per row [K], ``alpha`` and ``beta`` [K], posterior ``means`` [K, D], ``passes`` [K]; ``rank``."""

    evidence: Array
    alpha: Array
    beta: Array
    means: Array
    passes: NDArray[np.int64]
    rank: int


def maximise(features: ArrayLike, labels: ArrayLike, regression: bool = False, *, passes: int = 11, tolerance: float = 1e-3,
             epsilon: float = 1e-5, compat: str | None = None) -> Evidence:
    """The evidence of ``features`` [N, D] for ``labels``: [N] classes, or [N] or [N, K] numbers with ``regression``.

    Columns are the one-hot columns of the classes in sorted order, or the K targets. Each takes at most ``passes`` steps and
    stops when alpha / beta moved by no more than the share ``tolerance``. ``epsilon`` keeps alpha and beta finite where the
    features say nothing of a column, or all.

    Raises:
        BadData: arrays that do not fit.
        NoSuchSetting: passes, tolerance or epsilon that are not positive; an unknown ``compat``.
    """
    if not (passes >= 1 and tolerance >= 0 and epsilon > 0):
        raise NoSuchSetting(f"passes={passes}, tolerance={tolerance}, epsilon={epsilon}: at least 1, at least 0, above 0.")
    if compat is not None and compat not in COMPATIBLE:
        raise NoSuchSetting(f"no compat={compat!r}.{nearest(compat, COMPATIBLE)}")
    rows = read_features(features)
    if regression:
        targets = read_targets(labels, len(rows))
        products, squares = rows.T @ targets, (targets**2).sum(axis=0)
    else:
        classes = read_classes(labels, len(rows))
        products, squares = classes.sums(rows).T, classes.sizes.astype(np.float64)
    sizes, directions = decompose(rows)
    along = directions @ products / sizes[:, None]  # [k, K]: the columns in the features' own axes
    beyond = np.maximum(squares - (along**2).sum(axis=0), 0.0)  # what no linear function of the features reaches
    alpha, beta, before, used = _iterate(sizes**2, along**2, beyond, len(rows), passes, tolerance, epsilon)
    value = _evaluate(sizes**2, along**2, beyond, len(rows), alpha, beta, before)
    if compat is not None:  # log |A| without the directions in which the features are 0
        with np.errstate(divide="ignore"):
            value += (rows.shape[1] - (len(sizes) if len(rows) > rows.shape[1] else min(rows.shape))) / 2 * np.log(alpha)
    means = (directions.T @ (sizes[:, None] * along / (before + sizes[:, None] ** 2))).T
    return Evidence(value / len(rows), alpha, beta, means, used, len(sizes))


def _iterate(sigma: Array, energy: Array, beyond: Array, rows: int, passes: int, tolerance: float,
             epsilon: float) -> tuple[Array, Array, Array, NDArray[np.int64]]:
    """alpha, beta, the ratio alpha / beta that they were made from, and the steps taken, per column [K]."""
    columns = energy.shape[1]
    alpha, beta, before = np.ones(columns), np.ones(columns), np.ones(columns)
    used, moving = np.zeros(columns, dtype=np.int64), np.arange(columns)
    for _ in range(passes):
        ratio = alpha[moving] / beta[moving]
        gamma, length, residual = _moments(sigma, energy[:, moving], beyond[moving], ratio)
        alpha[moving] = gamma / (length + epsilon)
        beta[moving] = (rows - gamma) / (residual + epsilon)
        before[moving] = ratio
        used[moving] += 1
        moving = moving[np.abs(alpha[moving] / beta[moving] - ratio) > tolerance * ratio]
        if not len(moving):
            break
    return alpha, beta, before, used


def _moments(sigma: Array, energy: Array, beyond: Array, ratio: Array) -> tuple[Array, Array, Array]:
    """Effective dimensions, m'm and |F m - t|^2 at the posterior mean for that alpha / beta, per column."""
    sums = sigma[:, None] + ratio
    gamma = (sigma[:, None] / sums).sum(axis=0)
    length = (sigma[:, None] * energy / sums**2).sum(axis=0)
    return gamma, length, (energy * (ratio / sums) ** 2).sum(axis=0) + beyond


def _evaluate(sigma: Array, energy: Array, beyond: Array, rows: int, alpha: Array, beta: Array, before: Array) -> Array:
    """The log evidence per column; D log alpha and log |A| meet in one sum over the k directions that the features have."""
    _, length, residual = _moments(sigma, energy, beyond, before)
    with np.errstate(divide="ignore"):
        spread = np.log1p(sigma[:, None] * (beta / alpha)).sum(axis=0) if len(sigma) else np.zeros_like(beta)
    value: Array = 0.5 * (rows * np.log(beta / (2 * np.pi)) - beta * residual - alpha * length - spread)
    return value

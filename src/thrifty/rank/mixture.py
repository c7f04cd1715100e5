"""A mixture of Gaussians with full covariances, by expectation maximisation from k-means.

A. P. Dempster, N. M. Laird and D. B. Rubin, Journal of the Royal Statistical Society B, 1977; k-means++: D. Arthur and
S. Vassilvitskii, SODA 2007.
"""
from __future__ import annotations

import numpy as np

from thrifty.core.errors import BadData
from thrifty.rank.discriminant import softmax
from thrifty.rank.reading import Array

_RIDGE = 1e-6      # added to every variance
_TOLERANCE = 1e-3  # of the mean log likelihood between two rounds
_ROUNDS = 100


def share_out(rows: Array, start: Array) -> Array:
    """P(component | row), [N, K], after fitting from the shares ``start`` [N, K]. O(rounds N K D^2).

    Raises:
        BadData: a component whose covariance has no root: the features' scales differ too much for the ridge.
    """
    shares, before = start, -np.inf
    for _ in range(_ROUNDS):
        parameters = _estimate(rows, shares)
        logs = _log_densities(rows, *parameters)
        top = logs.max(axis=1)
        likelihood = float((top + np.log(np.exp(logs - top[:, None]).sum(axis=1))).mean())
        shares = softmax(logs)
        if abs(likelihood - before) < _TOLERANCE:
            break
        before = likelihood
    return softmax(_log_densities(rows, *_estimate(rows, shares)))


def group(rows: Array, count: int, random: np.random.Generator) -> Array:
    """k-means from k-means++: membership [N, count] of 0 and 1."""
    centres = rows[[int(random.integers(len(rows)))] * count]
    nearest = _squares(rows, centres[:1])[:, 0]
    for k in range(1, count):
        total = nearest.sum()
        centres[k] = rows[random.choice(len(rows), p=nearest / total if total > 0 else None)]
        nearest = np.minimum(nearest, _squares(rows, centres[k:k + 1])[:, 0])
    member = np.full(len(rows), -1)
    for _ in range(_ROUNDS):
        found = _squares(rows, centres).argmin(axis=1)
        if np.array_equal(found, member):
            break
        member = found
        for k in np.unique(member):  # a centre that lost all its rows stays where it is
            centres[k] = rows[member == k].mean(axis=0)
    return np.eye(count)[member]


def _squares(rows: Array, centres: Array) -> Array:
    squares: Array = (rows**2).sum(axis=1)[:, None] - 2 * rows @ centres.T + (centres**2).sum(axis=1)
    return np.maximum(squares, 0.0)


def _estimate(rows: Array, shares: Array) -> tuple[Array, Array, Array]:
    """Weights [K], means [K, D] and roots of the covariances [K, D, D]."""
    sizes = shares.sum(axis=0) + 10 * np.finfo(np.float64).eps
    means = shares.T @ rows / sizes[:, None]
    roots = np.empty((len(sizes), rows.shape[1], rows.shape[1]))
    for k in range(len(sizes)):
        apart = rows - means[k]
        covariance = (shares[:, k, None] * apart).T @ apart / sizes[k]
        covariance[np.diag_indices_from(covariance)] += _RIDGE
        try:
            roots[k] = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError as error:
            raise BadData(f"component {k} of the mixture has a singular covariance: standardise the features.") from error
    return sizes / sizes.sum(), means, roots


def _log_densities(rows: Array, weights: Array, means: Array, roots: Array) -> Array:
    logs = np.empty((len(rows), len(weights)))
    for k in range(len(weights)):
        whitened = np.linalg.solve(roots[k], (rows - means[k]).T)
        logs[:, k] = np.log(weights[k]) - (whitened**2).sum(axis=0) / 2 - np.log(np.diag(roots[k])).sum()
    constant: Array = logs - rows.shape[1] / 2 * np.log(2 * np.pi)
    return constant

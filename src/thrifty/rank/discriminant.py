"""Linear discriminant analysis with a covariance shrunk towards a multiple of the identity, shared by SFDA, NCTI and ETran."""
from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from thrifty.rank.reading import Array, Classes

LEAST = 1e-10      # of shrinkage
_COLLAPSED = 1e-24  # within-class scatter below this share of the features' squares is rounding


@dataclass(frozen=True)
class Discriminant:
    """softmax( rows @ weight.T + bias ): ``weight`` [C, D], ``bias`` [C]; ``within`` [D, D] is the shrunk scatter they use."""

    weight: Array
    bias: Array
    within: Array
    shrinkage: float

    def posterior(self, rows: Array) -> Array:
        """P(class | row), [N, C], for rows centred as those it was made from."""
        return softmax(rows @ self.weight.T + self.bias)


def discriminate(rows: Array, classes: Classes, shrinkage: float | None = None) -> Discriminant:
    """The discriminant of ``rows`` [N, D], centred, with covariance (1 - a) S + a tr(S)/D I, S the mean scatter within classes.

    Without ``shrinkage``, a = max(exp(-5 l), 1e-10) with l the largest eigenvalue of S as SFDA's power iteration finds it.
    Where classes are points (one row each, or equal rows) S is 0: a tiny sphere takes its place, which is the limit. O(N D^2 +
    D^3).
    """
    means = classes.means(rows)
    apart = rows - means[classes.codes]
    scatter = apart.T @ apart / len(rows)
    a = max(math.exp(-5 * _largest_eigenvalue(scatter)), LEAST) if shrinkage is None else shrinkage
    total = float((rows**2).mean())
    level = float(np.trace(scatter)) / len(scatter)
    if level <= _COLLAPSED * total or total == 0:
        within = np.eye(len(scatter)) * (LEAST * total or 1.0)
    else:
        within = shrink(scatter, a)
    weight: Array = np.linalg.solve(within, means.T).T.astype(np.float64, copy=False)
    return Discriminant(weight, np.log(classes.shares) - (means * weight).sum(axis=1) / 2, within, a)


def shrink(scatter: Array, share: float) -> Array:
    """(1 - share) S + share tr(S)/D I."""
    shrunk = (1 - share) * scatter
    shrunk[np.diag_indices_from(shrunk)] += share * np.trace(scatter) / len(scatter)
    return shrunk


def softmax(logits: Array) -> Array:
    """Rows of ``logits`` [N, C] as distributions."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Array = powers / powers.sum(axis=1, keepdims=True)
    return shares


def mean_of_own(probabilities: Array, classes: Classes) -> float:
    """The mean probability of a row's own class."""
    return float(probabilities[np.arange(len(probabilities)), classes.codes].mean())


def _largest_eigenvalue(matrix: Array) -> float:
    """As SFDA's code has it: three double steps of power iteration from the sums of the rows, then x' A y of the last two."""
    x = matrix.sum(axis=1)
    if not np.any(matrix @ x):  # that start has no part in any direction of the matrix; its heaviest column has
        x = matrix[:, int(np.diag(matrix).argmax())]
    if not np.any(matrix @ x):
        return 0.0
    y = x
    for _ in range(3):
        y = matrix @ x
        y = y / np.linalg.norm(y)
        x = matrix @ y
        x = x / np.linalg.norm(x)
    return float(x @ matrix @ y)

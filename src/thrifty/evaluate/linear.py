"""The baseline that every adapted model has to beat: a linear model on features that the frozen backbone computed.

Features are standardised by the training split. The strength of the penalty is chosen on the validation split; the test
split is only predicted.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thrifty.evaluate.classification import accuracy, negative_log_likelihood
from thrifty.evaluate.regression import mse
from thrifty.evaluate.weighing import Array

PENALTIES = (1.0, 0.1, 0.01, 0.001, 0.0001)


@dataclass(frozen=True)
class LinearFit:
    """``probabilities`` of the test items [n, C], the ``penalty`` chosen and its ``validation`` accuracy."""

    probabilities: Array
    penalty: float
    validation: float


@dataclass(frozen=True)
class RidgeFit:
    """``predicted`` numbers of the test items [n], the ``penalty`` chosen and its mean squared error on ``validation``."""

    predicted: Array
    penalty: float
    validation: float


def linear_head(train: ArrayLike, target: ArrayLike, validation: ArrayLike, validation_target: ArrayLike, test: ArrayLike, *,
                classes: int, penalties: Sequence[float] = PENALTIES) -> LinearFit:
    """Multinomial logistic regression: min over W, b of mean cross-entropy + penalty / 2 |W|^2, by L-BFGS in float64.

    Features are [n, D], targets [n] class numbers. The best validation accuracy wins, then the best likelihood.
    """
    x, held, asked = _standardise(train, validation, test)
    y, held_y = np.asarray(target, dtype=np.int64), np.asarray(validation_target, dtype=np.int64)
    weight = np.zeros((x.shape[1] + 1, classes))
    best: tuple[tuple[float, float], LinearFit] | None = None
    for penalty in sorted(penalties, reverse=True):  # each solution starts from that of the next stronger penalty
        weight = _minimise(x, y, weight, penalty)
        seen = _softmax(held, weight)
        right = float(accuracy(held_y, seen.argmax(axis=1)))
        rank = (right, -float(negative_log_likelihood(held_y, seen)))
        if best is None or rank > best[0]:
            best = rank, LinearFit(_softmax(asked, weight), penalty, right)
    if best is None:
        raise ValueError("no penalties to choose from")
    return best[1]


def ridge_head(train: ArrayLike, target: ArrayLike, validation: ArrayLike, validation_target: ArrayLike, test: ArrayLike, *,
               penalties: Sequence[float] = PENALTIES) -> RidgeFit:
    """Ridge regression: min over w, b of mean squared error + penalty |w|^2, exactly, by one singular value decomposition.

    A. E. Hoerl and R. W. Kennard, "Ridge regression: biased estimation for nonorthogonal problems", Technometrics, 1970.
    """
    x, held, asked = _standardise(train, validation, test)
    y, held_y = np.asarray(target, dtype=np.float64), np.asarray(validation_target, dtype=np.float64)
    centre = float(y.mean())
    left, sizes, right = np.linalg.svd(x, full_matrices=False)
    along = left.T @ (y - centre)
    best: RidgeFit | None = None
    for penalty in penalties:
        weight = right.T @ (along * sizes / (sizes**2 + penalty * len(y)))
        error = float(mse(held_y, held @ weight + centre))
        if best is None or error < best.validation:
            best = RidgeFit(asked @ weight + centre, penalty, error)
    if best is None:
        raise ValueError("no penalties to choose from")
    return best


def _standardise(train: ArrayLike, *others: ArrayLike) -> tuple[Array, ...]:
    x = np.asarray(train, dtype=np.float64)
    centre, spread = x.mean(axis=0), x.std(axis=0)
    spread[spread <= 1e-12 * (1 + np.abs(centre))] = 1.0
    return tuple((np.asarray(part, dtype=np.float64) - centre) / spread for part in (x, *others))


def _minimise(x: Array, y: NDArray[np.int64], start: Array, penalty: float) -> Array:
    """L-BFGS (D. C. Liu and J. Nocedal, Mathematical Programming, 1989); the last row of the weight is the free bias."""
    import torch

    features, target = torch.from_numpy(x), torch.from_numpy(y)
    weight = torch.from_numpy(start.copy()).requires_grad_()
    solver = torch.optim.LBFGS([weight], max_iter=300, tolerance_grad=1e-7, history_size=20, line_search_fn="strong_wolfe")

    def evaluate() -> torch.Tensor:
        solver.zero_grad()
        loss = torch.nn.functional.cross_entropy(features @ weight[:-1] + weight[-1], target)
        loss = loss + penalty / 2 * weight[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(evaluate)
    return weight.detach().numpy()


def _softmax(x: Array, weight: Array) -> Array:
    logits = x @ weight[:-1] + weight[-1]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: Array = powers / powers.sum(axis=1, keepdims=True)
    return result

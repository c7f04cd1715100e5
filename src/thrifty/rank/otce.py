"""OTCE, optimal transport based conditional entropy: transferability between two data sets seen by one model.

Y. Tan, Y. Li and S.-L. Huang, "OTCE: a transferability metric for cross-domain cross-task representations", CVPR 2021,
arXiv 2103.13843.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.rank.reading import Array, Classes, Codes, read_classes, read_features
from thrifty.rank.score import Score
from thrifty.rank.transport import transport


@dataclass(frozen=True)
class Coefficients:
    """OTCE = domain W_D^ + task W_T^ + bias, with W^ = (W - mean) / deviation: fitted by `fit_coefficients`."""

    domain: float
    task: float
    bias: float
    mean: tuple[float, float]
    deviation: tuple[float, float]

    def predict(self, domain: float, task: float) -> float:
        """The accuracy that the two differences let expect."""
        scaled = [(w - m) / d for w, m, d in zip((domain, task), self.mean, self.deviation, strict=True)]
        return self.domain * scaled[0] + self.task * scaled[1] + self.bias


def otce(source_features: ArrayLike, source_labels: ArrayLike, target_features: ArrayLike, target_labels: ArrayLike, *,
         coefficients: Coefficients | None = None, largest: int | None = 1000, seed: int = 0) -> Score:
    """-W_T, the negative conditional entropy of target given source labels under the coupling pi of optimal transport, in nats.

    ``source_features`` [n, D] and ``target_features`` [m, D] are one model's features of the data it was trained on and of the
    new data; ``source_labels`` [n], ``target_labels`` [m] their classes. pi moves uniform weights at the least sum of squared
    distances; W_D = sum pi_ij |x_i - x_j|^2 and W_T = -sum P log(P / P(source)) with P(y_s, y_t) the mass between the classes
    are in ``details``. -W_T is in [-log C, 0]. With ``coefficients`` from auxiliary tasks the score is the accuracy they predict.
    At most ``largest`` rows of each side are taken, drawn under ``seed`` (None: all). W_D grows with the features' scale, so
    compare like with like. One row per class, constant features (all couplings are then optimal: one of them is taken) and more
    dimensions than rows are fine. O(n^3) for n = m; a linear program else.

    Raises:
        BadData: arrays that do not fit, features of different widths, numbers that are not finite, a single target class.
        NoSuchSetting: ``largest`` below 2.
        Missing: SciPy is not installed.
    """
    if largest is not None and largest < 2:
        raise NoSuchSetting(f"largest={largest}: at least 2 rows, or None for all.")
    here, there = read_features(source_features, "source_features"), read_features(target_features, "target_features")
    source = read_classes(source_labels, len(here), "source_labels", least=1)
    target = read_classes(target_labels, len(there), "target_labels")
    if here.shape[1] != there.shape[1]:
        raise BadData(f"source features have {here.shape[1]} dimensions and target features {there.shape[1]}: use one model.")
    random = np.random.default_rng(seed)
    first, second = _draw(len(here), largest, random), _draw(len(there), largest, random)
    domain, joint = _couple(here[first], there[second], source, target, first, second)
    given = np.broadcast_to(joint.sum(axis=1, keepdims=True), joint.shape)
    filled = joint > 0
    task = -float((joint[filled] * np.log(joint[filled] / given[filled])).sum())
    value = -task if coefficients is None else coefficients.predict(domain, task)
    return Score(value, W_D=domain, W_T=task, source_rows=len(first), target_rows=len(second))


def fit_coefficients(differences: Sequence[tuple[float, float]], accuracies: Sequence[float]) -> Coefficients:
    """Least squares of ``accuracies`` on the standardised (W_D, W_T) of at least three auxiliary tasks.

    Raises:
        BadData: fewer than three tasks, not one accuracy per task, or a difference that is the same for all.
    """
    pairs, reached = read_features(np.asarray(differences), "differences"), np.asarray(accuracies, dtype=np.float64)
    if len(pairs) < 3 or pairs.shape[1] != 2 or reached.shape != (len(pairs),):
        raise BadData(f"coefficients need (W_D, W_T) and accuracy of three tasks or more, not {pairs.shape} and {reached.shape}.")
    mean, deviation = pairs.mean(axis=0), pairs.std(axis=0)
    if (flat := np.flatnonzero(deviation <= 1e-12 * np.abs(mean))).size:
        raise BadData(f"{('W_D', 'W_T')[flat[0]]} is the same for all auxiliary tasks, so it has no coefficient.")
    design = np.concatenate([(pairs - mean) / deviation, np.ones((len(pairs), 1))], axis=1)
    domain, task, bias = np.linalg.lstsq(design, reached, rcond=None)[0].tolist()
    return Coefficients(domain, task, bias, (float(mean[0]), float(mean[1])), (float(deviation[0]), float(deviation[1])))


def _draw(rows: int, largest: int | None, random: np.random.Generator) -> Codes:
    if largest is None or rows <= largest:
        return np.arange(rows)
    return np.sort(random.choice(rows, largest, replace=False))


def _couple(here: Array, there: Array, source: Classes, target: Classes, first: Codes, second: Codes) -> tuple[float, Array]:
    """W_D, and the mass between classes [C_s, C_t]."""
    middle = here.mean(axis=0)  # distances stay, and squares lose less precision
    a, b = here - middle, there - middle
    cost = np.maximum((a**2).sum(axis=1)[:, None] - 2 * a @ b.T + (b**2).sum(axis=1), 0.0)
    rows, columns, mass = transport(cost)
    joint = np.zeros((source.count, target.count))
    np.add.at(joint, (source.codes[first[rows]], target.codes[second[columns]]), mass)
    return float((cost[rows, columns] * mass).sum()), joint

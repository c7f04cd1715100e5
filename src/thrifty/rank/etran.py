"""ETran: is the data familiar to the model (energy), and do its features tell the labels (discriminant or regression)?

M. Gholami, M. Akbari, X. Wang, B. Kamranian and Y. Zhang, "ETran: energy-based transferability estimation", ICCV 2023,
arXiv 2308.02027.
"""
from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from thrifty.core.errors import NoSuchSetting, nearest
from thrifty.rank.discriminant import discriminate, mean_of_own, softmax
from thrifty.rank.reading import Array, Classes, centre, read_classes, read_features, read_targets, same_rows
from thrifty.rank.score import Score, weigh_parts
from thrifty.rank.spectrum import decompose

COMPATIBLE = ("nearest_mean",)
TAILS = ("lowest", "highest")
_ENERGY, _FIT = 0.15, 0.85


def etran(features: ArrayLike, labels: ArrayLike, regression: bool = False, *, logits: ArrayLike | None = None,
          percent: float = 50.0, tail: str = "lowest", compat: str | None = None) -> Score:
    """0.15 S_en + 0.85 S_cls; use `thrifty.rank.over_hub` on the scores of all candidates, which scales each part over them first.

    ``features`` [N, D]; ``labels`` [N] classes, or with ``regression`` numbers [N] or [N, K]. ``S_en`` is the mean of the
    logsumexp of ``logits`` [N, S] (the features, for models without a head) over the int(10 percent) N // 1000 rows, at least
    one, where it is ``tail``; ``S_cls`` the mean posterior of the own class under SFDA's first discriminant; in its place,
    ``S_reg`` is minus the mean squared error of least squares without intercept. Before scaling S_en is unbounded, S_cls in
    (0, 1], S_reg at most 0; after it the score is in [0, 1]. ``compat="nearest_mean"`` is the authors' code, whose eigenvectors
    make the discriminant a softmax over distances to the class means. One row per class gives S_cls 1; constant features the
    sum of squared class shares. O(N D^2 + D^3).

    Raises:
        BadData: arrays that do not fit, numbers that are not finite, a single class.
        NoSuchSetting: ``percent`` outside (0, 100], an unknown ``tail`` or ``compat``.
    """
    if not 0 < percent <= 100:
        raise NoSuchSetting(f"percent={percent}: above 0, at most 100.")
    if tail not in TAILS:
        raise NoSuchSetting(f"no tail={tail!r}.{nearest(tail, TAILS)}")
    if compat is not None and compat not in COMPATIBLE:
        raise NoSuchSetting(f"no compat={compat!r}.{nearest(compat, COMPATIBLE)}")
    rows = read_features(features)
    scores = rows if logits is None else read_features(logits, "logits")
    same_rows(rows, len(scores), "logits")
    if regression:
        name, fit = "S_reg", _regress(rows, read_targets(labels, len(rows)))
    else:
        name, fit = "S_cls", _separate(rows, read_classes(labels, len(rows)), compat)
    return weigh_parts({"S_en": _familiarity(scores, percent, tail), name: fit}, {"S_en": _ENERGY, name: _FIT})


def energy(logits: ArrayLike) -> Array:
    """log sum exp over each row of ``logits`` [N, S] -> [N]: minus the energy of W. Liu et al., NeurIPS 2020."""
    values = read_features(logits, "logits")
    top = values.max(axis=1)
    levels: Array = top + np.log(np.exp(values - top[:, None]).sum(axis=1))
    return levels


def _familiarity(logits: Array, percent: float, tail: str) -> float:
    levels = np.sort(energy(logits))
    kept = max(int(10 * percent) * len(levels) // 1000, 1)
    return float((levels[:kept] if tail == "lowest" else levels[-kept:]).mean())


def _separate(rows: Array, classes: Classes, compat: str | None) -> float:
    centred = centre(rows)
    if compat is None:
        return mean_of_own(discriminate(centred, classes).posterior(centred), classes)
    means = classes.means(centred)
    return mean_of_own(softmax(centred @ means.T - (means**2).sum(axis=1) / 2 + np.log(classes.shares)), classes)


def _regress(rows: Array, targets: Array) -> float:
    sizes, directions = decompose(rows)
    weight = directions.T @ (directions @ (rows.T @ targets) / sizes[:, None] ** 2)
    return -float(((rows @ weight - targets) ** 2).mean())

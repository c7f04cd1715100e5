"""NCTI, the neural collapse transferability index: how near the features are to the state that training ends in.

Z. Wang, Y. Luo, L. Zheng, Z. Huang and M. Baktashmotlagh, "How far pre-trained models are from neural collapse on the target
dataset informs their transferability", ICCV 2023.
"""
from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.rank.discriminant import LEAST, discriminate, mean_of_own, shrink, softmax
from thrifty.rank.reading import Array, Classes, centre, read_classes, read_features
from thrifty.rank.score import Score, weigh_parts
from thrifty.rank.spectrum import principal

WEIGHTS = {"S_all": 1.0, "S_ncc": 1.0, "S_vc": -1.0}
_SUMMED = 32        # components whose variance sets the shrinkage
_NEGLIGIBLE = 1e-4  # singular values below this are none, in scikit-learn's discriminant by singular value decomposition


def ncti(features: ArrayLike, labels: ArrayLike, *, dimensions: int = 64) -> Score:
    """S_all + S_ncc - S_vc; use `thrifty.rank.over_hub` on the scores of all candidates, which scales each part over them first.

    ``features`` [N, D], ``labels`` [N] classes. At most ``dimensions`` principal components go through a linear discriminant
    shrunk by a = max(exp(-v), 1e-10), v the variance of the first 32; at a = 1e-10 it is unshrunk instead, as the solver "svd"
    of scikit-learn 1.9 (older releases divide by N - C where it divides by N). Z are its coordinates, C - 1 at most. ``S_all``
    is the nuclear norm of Z, ``S_ncc`` the mean posterior of the own class, ``S_vc`` the log of the sum over classes of the
    nuclear norm of their rows' posteriors. Before scaling no range is given; after it, [-1, 2]. Fewer rows or features than
    ``dimensions`` leave fewer components. Constant features have S_all 0 and the class shares as posteriors.
    O(N D min(N, D)).

    Raises:
        BadData: arrays that do not fit, numbers that are not finite, a single class; no variation within any class, as with one
            row per class, which leaves the discriminant's scale open.
        NoSuchSetting: ``dimensions`` below 1.
    """
    if dimensions < 1:
        raise NoSuchSetting(f"dimensions={dimensions}: at least 1.")
    rows = read_features(features)
    classes = read_classes(labels, len(rows))
    reduced, variances = principal(rows, dimensions)
    shrinkage = max(math.exp(-float(variances[:_SUMMED].sum())), LEAST)
    if np.any(reduced):
        apart = reduced - classes.means(reduced)[classes.codes]
        if np.abs(apart).max() <= 1e-12 * np.abs(reduced).max():
            raise BadData("the features do not vary within any class (one row per class?), so NCTI's discriminant has no scale.")
        if shrinkage == LEAST:
            coordinates, posterior = _by_singular_values(reduced, classes)
        else:
            coordinates, posterior = _by_eigenvectors(reduced, classes, shrinkage)
    else:
        coordinates, posterior = np.zeros((len(rows), 1)), np.tile(classes.shares, (len(rows), 1))
    collapse = sum(_nuclear(posterior[classes.codes == k]) for k in range(classes.count))
    parts = {"S_all": _nuclear(coordinates), "S_ncc": mean_of_own(posterior, classes), "S_vc": math.log(collapse)}
    return weigh_parts(parts, WEIGHTS, shrinkage=shrinkage)


def _nuclear(rows: Array) -> float:
    return float(np.linalg.svd(rows, compute_uv=False).sum())


def _by_eigenvectors(rows: Array, classes: Classes, shrinkage: float) -> tuple[Array, Array]:
    """Coordinates [N, p] along the leading eigenvectors of the scatter between classes in the metric of that within; posteriors."""
    found = discriminate(rows, classes, shrinkage)
    between = shrink(rows.T @ rows / len(rows), shrinkage) - found.within
    root = np.linalg.cholesky(found.within)
    whitened = np.linalg.solve(root, np.linalg.solve(root, between).T)
    _, vectors = np.linalg.eigh((whitened + whitened.T) / 2)
    leading = vectors[:, ::-1][:, :classes.count - 1]
    return centre(rows @ np.linalg.solve(root.T, leading)), found.posterior(rows)


def _by_singular_values(rows: Array, classes: Classes) -> tuple[Array, Array]:
    """The same without shrinkage, and without the directions in which classes do not vary."""
    means = classes.means(rows)
    apart = rows - means[classes.codes]
    spread = apart.std(axis=0)
    spread[spread == 0] = 1.0
    _, sizes, directions = np.linalg.svd(apart / spread / math.sqrt(len(rows)), full_matrices=False)
    kept = sizes > _NEGLIGIBLE
    whiten = (directions[kept] / spread).T / sizes[kept]
    weighted = np.sqrt(classes.sizes / (classes.count - 1))[:, None] * (means @ whiten)
    _, sizes, directions = np.linalg.svd(weighted, full_matrices=False)
    onto = whiten @ directions[sizes > _NEGLIGIBLE * sizes[0]].T
    places = means @ onto
    logits = rows @ onto @ places.T - (places**2).sum(axis=1) / 2 + np.log(classes.shares)
    return centre((rows @ onto)[:, :classes.count - 1]), softmax(logits)

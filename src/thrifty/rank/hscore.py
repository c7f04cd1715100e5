"""H-score: how much of the features' variance, whitened, lies between the classes.

Y. Bao, Y. Li, S.-L. Huang, L. Zhang, L. Zheng, A. Zamir and L. Guibas, "An information-theoretic approach to transferability in
task transfer learning", ICIP 2019. Regularised: S. Ibrahim, N. Ponomareva and R. Mazumder, "Newer is not always better:
rethinking transferability metrics, their peculiarities, stability and performance", ECML PKDD 2022, arXiv 2110.06893.
"""
from __future__ import annotations

from numpy.typing import ArrayLike

from thrifty.rank.reading import Array, centre, read_classes, read_features
from thrifty.rank.score import Score
from thrifty.rank.spectrum import decompose


def hscore(features: ArrayLike, labels: ArrayLike, *, regularised: bool = False) -> Score:
    """tr( cov(F)^+ cov(E[F | y]) ), covariances over N - 1.

    ``features`` [N, D], ``labels`` [N] classes. In [0, min(C - 1, D)]; unchanged by any invertible affine map of the features
    and by features that repeat others. It saturates at C - 1 as soon as D >= N - 1, and so with one row per class; constant
    features give 0. ``regularised`` puts tr( cov_a(F)^-1 (1 - a) cov(E[F | y]) ) in its place, with the covariance over N shrunk
    by a as O. Ledoit and M. Wolf (Journal of Multivariate Analysis, 2004) do, which does not saturate. O(N D min(N, D)).

    Raises:
        BadData: arrays that do not fit, numbers that are not finite, a single class.
    """
    rows = read_features(features)
    classes = read_classes(labels, len(rows))
    centred = centre(rows)
    sizes, directions = decompose(centred)
    if not len(sizes):
        return Score(0.0, rank=0)
    between = ((classes.sums(centred) @ directions.T) ** 2 / classes.sizes[:, None]).sum(axis=0)  # along each direction
    if not regularised:
        return Score(float((between / sizes**2).sum()), rank=len(sizes))
    variances = sizes**2 / len(rows)
    shrinkage, level = shrink(centred, variances)
    shrunk = (1 - shrinkage) * variances + shrinkage * level
    value = (1 - shrinkage) * float((between / (len(rows) - 1) / shrunk).sum())
    return Score(value, rank=len(sizes), shrinkage=shrinkage)


def shrink(centred: Array, variances: Array) -> tuple[float, float]:
    """Ledoit and Wolf's share of a multiple of the identity for rows [N, D], given the spectrum of their covariance over N; and
    that multiple, the mean variance."""
    rows, width = centred.shape
    level = float(variances.sum()) / width
    squares = float((variances**2).sum())
    off = max(squares / width - level**2, 0.0)
    noise = (float(((centred**2).sum(axis=1) ** 2).sum()) / rows - squares) / (width * rows)
    return (min(noise, off) / off if off > 0 else 0.0), level

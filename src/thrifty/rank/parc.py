"""PARC, the pairwise annotation representation comparison: do rows of one class have like features?

D. Bolya, R. Mittapalli and J. Hoffman, "Scalable diverse model selection for accessible transfer learning", NeurIPS 2021,
arXiv 2111.06977.
"""
from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from thrifty.core.errors import BadData, NoSuchSetting, nearest
from thrifty.rank.reading import Array, centre, read_classes, read_features
from thrifty.rank.score import Score
from thrifty.rank.spectrum import principal

TIES = ("rounded", "equal")
_DIGITS = 12  # correlations that differ by less are equal up to rounding, and share a rank


def parc(features: ArrayLike, labels: ArrayLike, *, dimensions: int | None = None, ties: str = "rounded") -> Score:
    """100 x Spearman's correlation, over pairs of rows, of 1 - corr(features of the rows) and 1 - corr(their one-hot labels).

    ``features`` [N, D >= 3], standardised per column, with constant columns as 0, after a reduction to ``dimensions`` principal
    components if given (the paper's code has 32, by a randomised method); ``labels`` [N] classes. In [-100, 100]. Only whether
    two rows share a class matters: one-hot labels of two classes are all equally far apart. Unchanged by affine maps of single
    columns with positive slope and by renumbering the classes; not by rotation. O(N^2 D) time, some 100 N^2 bytes.

    ``ties="rounded"`` ranks all correlations as they are rounded, as the authors' code does: pairs that share a class are then
    not all equally near, as 1 - corr of equal one-hot rows is 0 for some and 2e-16 for others, which depends on the numbers that
    classes have; so these are counted in the order in which classes appear. With ``ties="equal"`` they share a rank.

    Raises:
        BadData: arrays that do not fit, numbers that are not finite, a single class; fewer than three dimensions (correlations
            of two numbers are 1 or -1); a row whose standardised features are all equal; one row per class, or all pairs alike.
        NoSuchSetting: fewer than three ``dimensions``, unknown ``ties``.
    """
    if dimensions is not None and dimensions < 3:
        raise NoSuchSetting(f"dimensions={dimensions}: rows of fewer than three numbers have no correlations to rank.")
    if ties not in TIES:
        raise NoSuchSetting(f"no ties={ties!r}.{nearest(ties, TIES)}")
    rows = read_features(features)
    classes = read_classes(labels, len(rows))
    if dimensions is not None:
        rows, _ = principal(rows, dimensions)
    if rows.shape[1] < 3:
        raise BadData(f"PARC correlates rows, which needs three dimensions; here are {rows.shape[1]}.")
    if classes.sizes.max() < 2:
        raise BadData("every class has one row, so no pair of rows shares a class: PARC has no value.")
    upper = np.triu_indices(len(rows), 1)
    distances = 1 - np.asarray(np.corrcoef(_standardise(rows)))[upper]
    if ties == "equal":
        distances, far = np.round(distances, _DIGITS), (classes.codes[upper[0]] != classes.codes[upper[1]]).astype(np.float64)
    else:
        _, first, codes = np.unique(classes.codes, return_index=True, return_inverse=True)
        numbers = np.argsort(np.argsort(first))[codes]
        far = 1 - np.asarray(np.corrcoef(np.eye(classes.count)[numbers]))[upper]
    ranks, wanted = _rank(distances), _rank(far)
    spread = float(ranks.std() * wanted.std())
    if spread == 0:
        raise BadData("all pairs of rows are equally far apart: PARC has no value.")
    return Score(100 * float(((ranks - ranks.mean()) * (wanted - wanted.mean())).mean()) / spread)


def _standardise(rows: Array) -> Array:
    centred = centre(rows)
    spread = centred.std(axis=0)
    scaled: Array = centred / np.where(spread > 0, spread, 1.0)
    if (flat := np.flatnonzero(np.ptp(scaled, axis=1) <= 1e-12 * np.abs(scaled).max(axis=1))).size:
        raise BadData(f"the standardised features of row {flat[0]} are all equal, so it correlates with nothing.")
    return scaled


def _rank(values: Array) -> Array:
    """Ranks from 1, ties sharing their mean rank."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle: Array = np.cumsum(counts) - (counts - 1) / 2
    return middle[group]

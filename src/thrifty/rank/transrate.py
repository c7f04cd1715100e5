"""TransRate, the information between features and labels as a difference of coding rates.

L.-K. Huang, J. Huang, Y. Rong, Q. Yang and Y. Wei, "Frustratingly easy transferability estimation", ICML 2022, arXiv 2106.09362.
"""
from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from thrifty.core.errors import NoSuchSetting, nearest
from thrifty.rank.reading import Array, centre, read_classes, read_features
from thrifty.rank.score import Score

WEIGHTS = ("uniform", "size")


def transrate(features: ArrayLike, labels: ArrayLike, *, epsilon: float = 1e-4, weights: str = "uniform") -> Score:
    """R(Z) - R(Z | y), with R(Z) = 1/2 log det( I + Z'Z / (n epsilon) ) over n rows, in nats; Z are the features, centred once.

    ``features`` [N, D], ``labels`` [N] classes. R(Z | y) is the mean of R over the classes, which are not centred again,
    all alike (``weights="uniform"``, the authors' code) or weighted by their shares (``"size"``, the paper's definition). At
    least 0 with "size"; with "uniform" it can be negative where sizes differ much. Unchanged by translation and rotation but
    not by scale, and it grows with D: compare models of equal D, or normalise. One row per class and constant features (0) are
    fine. O(N D min(N, D)).

    Raises:
        BadData: arrays that do not fit, numbers that are not finite, a single class.
        NoSuchSetting: epsilon that is not positive, unknown weights.
    """
    if epsilon <= 0:
        raise NoSuchSetting(f"epsilon={epsilon}: the distortion must be positive.")
    if weights not in WEIGHTS:
        raise NoSuchSetting(f"no weights={weights!r}.{nearest(weights, WEIGHTS)}")
    rows = read_features(features)
    classes = read_classes(labels, len(rows))
    centred = centre(rows)
    shares = classes.shares if weights == "size" else np.full(classes.count, 1 / classes.count)
    whole = rate(centred, epsilon)
    within = sum(float(share) * rate(centred[classes.codes == k], epsilon) for k, share in enumerate(shares))
    return Score(whole - within, whole=whole, within=within)


def rate(rows: Array, epsilon: float) -> float:
    """The coding rate of ``rows`` [n, D] up to a distortion, by their singular values: exact on either side of n = D."""
    tall = len(rows) > rows.shape[1]
    sizes = np.linalg.svd(np.linalg.qr(rows, mode="r") if tall else rows, compute_uv=False)
    return float(np.log1p(sizes**2 / (len(rows) * epsilon)).sum()) / 2

"""N-LEEP: LEEP over a mixture of Gaussians in feature space, for models without a head.

Y. Li, X. Jia, R. Sang, Y. Zhu, B. Green, L. Wang and B. Gong, "Ranking neural checkpoints", CVPR 2021, arXiv 2011.11200.
"""
from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.rank.leep import expected_log
from thrifty.rank.mixture import group, share_out
from thrifty.rank.reading import read_classes, read_features
from thrifty.rank.score import Score
from thrifty.rank.spectrum import principal

PER_CLASS = 5


def nleep(features: ArrayLike, labels: ArrayLike, *, components: int | None = None, share: float | None = 0.8,
          seed: int = 0) -> Score:
    """LEEP with P_iz = P(component z | row i), in nats: true logarithms, unlike the "NLEEP" in SFDA's code.

    ``features`` [N, D], ``labels`` [N] classes. The principal components that hold ``share`` of the variance (None: all) are
    given to a mixture of ``components`` Gaussians (None: 5 per class), whose start is drawn under ``seed``; other seeds give
    somewhat other scores. In (-inf, 0]; constant features give -H(Y). O(rounds N K p^2).

    Raises:
        BadData: arrays that do not fit, numbers that are not finite, a single class, more components than rows (so one row per
            class, unless ``components`` says less).
        NoSuchSetting: ``components`` below 1, ``share`` outside (0, 1).
    """
    if (components is not None and components < 1) or (share is not None and not 0 < share < 1):
        raise NoSuchSetting(f"components={components}, share={share}: at least 1 or None, between 0 and 1 or None.")
    rows = read_features(features)
    classes = read_classes(labels, len(rows))
    count = PER_CLASS * classes.count if components is None else components
    if count > len(rows):
        raise BadData(f"{count} components ({PER_CLASS} per class by default) need as many rows; here are {len(rows)}.")
    reduced, _ = principal(rows, share=share)
    shares = share_out(reduced, group(reduced, count, np.random.default_rng(seed)))
    return Score(expected_log(shares, classes), components=count, dimensions=reduced.shape[1])

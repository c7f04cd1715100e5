"""SFDA, self-challenging Fisher discriminant analysis.

W. Shao, X. Zhao, Y. Ge, Z. Zhang, L. Yang, X. Wang, Y. Shan and P. Luo, "Not all models are equal: predicting model
transferability in a self-challenging Fisher space", ECCV 2022, arXiv 2207.03036.
"""
from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from thrifty.rank.discriminant import discriminate, mean_of_own
from thrifty.rank.reading import centre, read_classes, read_features
from thrifty.rank.score import Score


def sfda(features: ArrayLike, labels: ArrayLike) -> Score:
    """The mean posterior of the own class under a shrunk linear discriminant of features that were first made harder.

    ``features`` F [N, D], ``labels`` [N] classes. A first discriminant gives posteriors p; with q = softmax(p), row i becomes
    q_iy F_i + (1 - q_iy) times the mean of the other classes' means; a second discriminant with the same shrinkage gives the
    score. In (0, 1], about 1/C for features that say nothing. It saturates at 1 when D > N and with one row per class; constant
    features give the sum of squared class shares. Unchanged by translation and, up to the few steps that find the shrinkage, by
    rotation; not by scale, which sets the shrinkage.
    O(N D^2 + D^3).

    Raises:
        BadData: arrays that do not fit, numbers that are not finite, a single class.
    """
    rows = centre(read_features(features))  # changes no posterior, and keeps precision where features lie far from 0
    classes = read_classes(labels, len(rows))
    first = discriminate(rows, classes)
    soft = np.exp(first.posterior(rows))
    own = (soft[np.arange(len(rows)), classes.codes] / soft.sum(axis=1))[:, None]
    means = classes.means(rows)
    others = (means.sum(axis=0) - means) / (classes.count - 1)
    harder = centre(own * rows + (1 - own) * others[classes.codes])
    second = discriminate(harder, classes, first.shrinkage)
    return Score(mean_of_own(second.posterior(harder), classes), shrinkage=first.shrinkage)

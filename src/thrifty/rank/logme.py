"""LogME, the maximum evidence of the labels given the features.

K. You, Y. Liu, J. Wang and M. Long, "LogME: practical assessment of pre-trained models for transfer learning", ICML 2021,
arXiv 2102.11005; its fixed point is in `thrifty.rank.evidence`.
"""
from __future__ import annotations

from numpy.typing import ArrayLike

from thrifty.rank.evidence import maximise
from thrifty.rank.score import Score


def logme(features: ArrayLike, labels: ArrayLike, regression: bool = False, *, passes: int = 11, tolerance: float = 1e-3,
          epsilon: float = 1e-5, compat: str | None = None) -> Score:
    """The mean over columns of the maximum log evidence per row, in nats.

    ``features`` [N, D]; ``labels`` [N] classes, or with ``regression`` numbers [N] or [N, K]. Unbounded on both sides, and
    often positive. There is no intercept: a constant feature acts as one, and translation changes the score; at convergence
    rotation and scale do not, nor does a feature that is 0. Right for D > N and for features of any rank. One row per class,
    constant features and a column that the features say nothing of have a defined value; where they say all, the evidence has
    no bound and ``epsilon`` sets it. O(N D min(N, D) + C min(N, D)).

    ``compat="thuml_fixed_point"`` leaves out of log |A| the directions that the features do not have, as the authors' code
    does: the same where D is the rank, too high elsewhere. `maximise` says what the other settings are, and gives the
    posterior means.

    Raises:
        BadData: arrays that do not fit, numbers that are not finite, a single class.
        NoSuchSetting: a setting out of its range.
    """
    found = maximise(features, labels, regression, passes=passes, tolerance=tolerance, epsilon=epsilon, compat=compat)
    return Score(float(found.evidence.mean()), columns=found.evidence.tolist(), alpha=found.alpha.tolist(),
                 beta=found.beta.tolist(), passes=found.passes.tolist(), rank=found.rank)

"""B-Tuning: several pretrained models as teachers of the one that is tuned, weighed by their evidence.

K. You, Y. Liu, Z. Zhang, J. Wang, M. I. Jordan and M. Long, "Ranking and tuning pre-trained models: a new paradigm for exploiting
model hubs", JMLR 2022, arXiv 2110.10545. The paper takes the three best of LogME and trains on cross-entropy + `penalty`.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.rank.reading import Array, read_features

TEMPERATURE = 0.1
TRADEOFF = 100.0


def weigh(scores: ArrayLike, temperature: float = TEMPERATURE) -> Array:
    """pi = softmax(scores / temperature) of the LogME ``scores`` [K] of the teachers -> [K], which sums to 1.

    Raises:
        BadData: no scores, or one that is not finite.
        NoSuchSetting: a temperature that is not positive.
    """
    if temperature <= 0:
        raise NoSuchSetting(f"temperature={temperature}: above 0.")
    values = read_features(np.atleast_2d(np.asarray(scores, dtype=np.float64)), "scores")[0] / temperature
    powers = np.exp(values - values.max())
    weights: Array = powers / powers.sum()
    return weights


def blend(features: Sequence[Any], means: Sequence[Any], weights: Sequence[float]) -> Any:
    """The mean of the target distribution, sum_k pi_k f_k M_k' -> [B, C], for arrays or tensors.

    ``features`` f_k [B, D_k] of a batch by each teacher, ``means`` M_k [C, D_k] their posterior means
    (`thrifty.rank.maximise(...).means`), ``weights`` pi from `weigh`.

    Raises:
        BadData: not one of each per teacher.
    """
    if not len(features) == len(means) == len(weights) > 0:
        raise BadData(f"{len(features)} features, {len(means)} posterior means and {len(weights)} weights: one each per teacher.")
    return sum(float(pi) * (f @ m.T) for f, m, pi in zip(features, means, weights, strict=True))


def penalty(features: Any, mean: Any, target: Any, tradeoff: float = TRADEOFF) -> Any:
    """tradeoff x mean over batch and classes of (f M' - target)^2, for arrays or tensors.

    ``features`` f [B, D] are those of the model being tuned, ``mean`` M [C, D] its own posterior mean from before tuning, which
    stays as it is, ``target`` [B, C] from `blend`, without gradient. 0 if the model is its own and only teacher.
    """
    return tradeoff * ((features @ mean.T - target) ** 2).mean()

"""How often each of several sets is drawn from in one training, as pure functions of how many rows they have.

Raffel, Shazeer, Roberts, Lee, Narang, Matena, Zhou, Li, Liu: Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer; JMLR 2020, arXiv:1910.10683, section 3.5.2. Stickland, Murray: BERT and PALs: Projected Attention
Layers for Efficient Adaptation in Multi-Task Learning; ICML 2019, arXiv:1902.02671 (`annealed`). A trainer draws the set of
each batch with these rates.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from thrifty.core.errors import BadData, NoSuchSetting, nearest

Rates = dict[str, float]


def proportional(sizes: Mapping[str, float], cap: float | None = None, scale: Mapping[str, float] | None = None) -> Rates:
    """r_i = min(e_i, K) / sum_j min(e_j, K), for e_i rows and the cap K: a huge set cannot crowd out the small ones.

    The paper's K lies between 2^18 and 2^21, and its unsupervised task counts as K rows. FLAN caps at 3,000. ``scale``
    multiplies sizes before the cap: T5 counts RTE half, as it stands in GLUE and in SuperGLUE.

    Raises: BadData for no sets, or one without a row; NoSuchSetting for a cap or scale that is not positive.
    """
    return tempered(sizes, 1.0, cap, scale)


def tempered(sizes: Mapping[str, float], temperature: float, cap: float | None = None,
             scale: Mapping[str, float] | None = None) -> Rates:
    """r_i = min(e_i, K)^(1/T), brought to the sum 1. T = 1 is `proportional`; the larger T, the nearer to `equal`.

    Raises: as `proportional`; NoSuchSetting also for a temperature below 1.
    """
    if not temperature >= 1:
        raise NoSuchSetting(f"temperature must be at least 1 (1 is proportional, infinity is equal), not {temperature!r}.")
    counts = capped(sizes, cap, scale)
    # through logarithms, so that the power of a huge set is as exact as that of a small one
    highest = max(map(math.log, counts.values()))
    powers = {name: math.exp((math.log(count) - highest) / temperature) for name, count in counts.items()}
    return normalised(powers)


def annealed(sizes: Mapping[str, float], epoch: int, epochs: int, cap: float | None = None,
             scale: Mapping[str, float] | None = None) -> Rates:
    """r_i = min(e_i, K)^alpha, brought to the sum 1, with alpha = 1 - 0.8 (epoch - 1) / (epochs - 1) and epochs counted from 1.

    So a training begins at `proportional` and ends at alpha = 0.2, where small sets come up nearly as often as large ones.

    Raises: as `proportional`; NoSuchSetting also for an epoch that is none of 1 to ``epochs``.
    """
    if not 1 <= epoch <= epochs:
        raise NoSuchSetting(f"epoch must be one of 1 to {epochs!r}, not {epoch!r}.")
    return tempered(sizes, 1 / (1 - 0.8 * (epoch - 1) / max(1, epochs - 1)), cap, scale)


def equal(names: Iterable[str]) -> Rates:
    """The same rate for every set.

    Raises: BadData for no sets.
    """
    return normalised(dict.fromkeys(names, 1.0))


def normalised(weights: Mapping[str, float]) -> Rates:
    """Any weights, brought to the sum 1; a weight of 0 leaves a set out.

    Raises: BadData where no weight is positive, or one is negative or not finite.
    """
    wrong = {name: weight for name, weight in weights.items() if not (weight >= 0 and math.isfinite(weight))}
    if wrong or not any(weights.values()):
        raise BadData(f"a mixture needs weights of at least 0, one of them positive; given: {wrong or dict(weights)}.")
    total = math.fsum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def capped(sizes: Mapping[str, float], cap: float | None, scale: Mapping[str, float] | None = None) -> dict[str, float]:
    """min(scale * size, cap) of every set.

    Raises: as `proportional`.
    """
    if cap is not None and not cap > 0:
        raise NoSuchSetting(f"cap must be positive, not {cap!r}.")
    for name, factor in (scale or {}).items():
        if name not in sizes:
            raise NoSuchSetting(f"scale names a set {name!r} that is not in the mixture.{nearest(name, sizes)}")
        if not factor > 0:
            raise NoSuchSetting(f"scale of {name!r} must be positive, not {factor!r}.")
    empty = {name: size for name, size in sizes.items() if not (size > 0 and math.isfinite(size))}
    if empty or not sizes:
        raise BadData(f"a mixture needs sets with at least one row each; given: {empty or 'none'}.")
    limit = math.inf if cap is None else cap
    return {name: min(size * (scale or {}).get(name, 1.0), limit) for name, size in sizes.items()}

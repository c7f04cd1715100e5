"""How likely each of several tasks is drawn, as in BERT and PALs: Projected Attention Layers for Efficient Adaptation in
Multi-Task Learning (Stickland, Murray; ICML 2019, arXiv:1902.02671)."""
from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import NoSuchSetting


def annealing(epoch: int, epochs: int) -> float:
    """The exponent alpha for ``chances`` in ``epoch`` (counted from 1) of ``epochs``: from 1 down to 0.2 in equal steps.

    Raises:
        NoSuchSetting: there is no such epoch.
    """
    if not 1 <= epoch <= epochs:
        raise NoSuchSetting(f"epoch {epoch} is none of 1 to {epochs}")
    return 1 - 0.8 * (epoch - 1) / max(1, epochs - 1)


def chances(sizes: Sequence[int], alpha: float) -> list[float]:
    """How likely each task is drawn: p_i ~ N_i ** alpha, for ``sizes`` N_i. 1 is proportional, 0.5 the square root, 0 equal.

    Raises:
        NoSuchSetting: there are no tasks, or one has no rows.
    """
    if not sizes or min(sizes) < 1:
        raise NoSuchSetting(f"tasks are drawn by how many rows they have, at least 1 each, not {list(sizes)}")
    weights = [size**alpha for size in sizes]
    return [weight / sum(weights) for weight in weights]

"""The learning rate over a training, as a share of its peak."""
from __future__ import annotations

import math
from collections.abc import Callable

SCHEDULES: dict[str, Callable[[float], float]] = {  # share of the way after the warm-up -> share of the peak
    "linear": lambda way: 1 - way,
    "cosine": lambda way: 0.5 * (1 + math.cos(math.pi * way)),
    "constant": lambda way: 1.0,
}


def share(step: int, total: int, warmup: float, schedule: str) -> float:
    """What step ``step`` (counted from 0) of ``total`` trains with, as a share of the peak.

    The rate rises in equal parts over the first ``warmup`` of the steps, so that the first step already moves.
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return (step + 1) / (rising + 1)
    return SCHEDULES[schedule]((step - rising) / max(1, total - rising))

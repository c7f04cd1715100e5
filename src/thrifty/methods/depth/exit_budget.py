"""Thresholds of early exits for a budget of computation, from the confidences of data that did not train.

The rule of Dynamic Domain Adaptation for Efficient Inference (Li, Zhang, Ma, Liu, Li; CVPR 2021), which is that of Multi-Scale
Dense Networks for Resource Efficient Image Classification (Huang, Chen, Li, Wu, van der Maaten, Weinberger; ICLR 2018).
Exits are counted from 0 here; c[k][i] is how confident exit k is of sample i, and larger is surer.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

Confidences = Sequence[Sequence[float]]


def shares(q: float, exits: int) -> list[float]:
    """Which share of all samples should leave at each exit: p_k = q^k / sum_j q^j with k, j = 1 .. ``exits``.

    >>> [round(p, 4) for p in shares(0.5, 3)]
    [0.5714, 0.2857, 0.1429]
    """
    powers = [q**k for k in range(1, exits + 1)]
    return [power / sum(powers) for power in powers]


def thresholds(c: Confidences, q: float) -> list[float]:
    """T_k for every exit: from the surest down among the samples that are left, the confidence of the floor(n p_k)-th.

    All that are as sure or surer leave, so that ties let more go than their share. Where no sample may leave, T_k is infinite;
    the last exit takes all, and its T is minus infinity.

    >>> thresholds([[.9, .8, .6, .55, .5, .4], [.95, .7, .85, .65, .6, .5], [1] * 6], 0.5)
    [0.6, 0.65, -inf]
    """
    n, found = len(c[0]), []
    left = set(range(n))
    for sure, share in zip(c[:-1], shares(q, len(c))[:-1], strict=True):
        quota = math.floor(n * share)
        ranked = sorted((sure[i] for i in left), reverse=True)
        found.append(ranked[quota - 1] if 0 < quota <= len(ranked) else math.inf)
        left = {i for i in left if sure[i] < found[-1]}
    return [*found, -math.inf]


def leave(c: Confidences, t: Sequence[float]) -> list[int]:
    """The exit that each sample takes: the first that is at least as confident as its threshold."""
    return [next(k for k, (sure, least) in enumerate(zip(c, t, strict=True)) if sure[i] >= least) for i in range(len(c[0]))]


def cost(taken: Sequence[int], each: Sequence[float]) -> float:
    """The mean cost of a sample, where leaving at exit k costs ``each[k]``, all that comes before it included."""
    return sum(each[k] for k in taken) / len(taken)

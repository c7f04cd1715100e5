"""Which channels of CLIP's features tell the classes of a task apart:

Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement (Zhu, Zhang, He, Zhou, Wang, Zhao, Gao; ICCV 2023,
arXiv:2304.01195).
"""
from __future__ import annotations

import torch
from torch import Tensor

from .support import Seen


def similarity(classes: Tensor, keys: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
    """S [d]: in each channel the mean of products of two vectors of different classes, over ordered pairs.

    The vectors are class features [K, d] and, if given, keys [M, d] with class numbers [M]. With s_k the sum of class k's n_k
    vectors it is ((sum_k s_k)² - sum_k s_k²) / (n² - sum_k n_k²), which is what four loops over all pairs would give.
    """
    sums, counts = classes.clone(), torch.ones(len(classes), dtype=classes.dtype, device=classes.device)
    if keys is not None and labels is not None:
        sums.index_add_(0, labels, keys)
        counts += labels.bincount(minlength=len(classes))
    pairs = counts.sum().square() - counts.square().sum()
    return (sums.sum(0).square() - sums.square().sum(0)) / pairs


def criterion(support: Seen, similar: float, varied: float, text_only: bool = False) -> Tensor:
    """J [d] = -similar S + varied V, V the variance (unbiased) of class features over classes; higher is better."""
    kept = () if text_only else (support.unit, support.labels)
    return -similar * similarity(support.classes, *kept) + varied * support.classes.var(0)


def choose(J: Tensor, count: int) -> Tensor:
    """Numbers [count] of the best channels, the best first."""
    return J.topk(count).indices


def count_of(share: float, width: int) -> int:
    """How many channels a share of them is; at least one."""
    return max(1, round(share * width))

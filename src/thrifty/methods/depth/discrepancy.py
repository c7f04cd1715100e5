"""How far two domains are apart at an exit, and the loss that brings them together: the maximum mean discrepancy of Learning
Transferable Features with Deep Adaptation Networks (Long, Cao, Wang, Jordan; ICML 2015, arXiv:1502.02791), and of features and
answers jointly, Deep Transfer Learning with Joint Adaptation Networks (Long, Zhu, Wang, Jordan; ICML 2017, arXiv:1605.06636)."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .exits import listening
from .said import Said

if TYPE_CHECKING:
    from ...core import Attachment

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the Gaussian kernels, in mean squared distances


def kernel(x: Tensor) -> Tensor:
    """The mean of Gaussian kernels of several widths between the rows of x [n, d]: [n, n]."""
    distances = (x[:, None] - x[None]).square().sum(-1)
    mean = distances.detach().sum() / max(1, len(x) * (len(x) - 1))
    return torch.stack([(-distances / (width * mean).clamp_min(1e-12)).exp() for width in WIDTHS]).mean(0)


def mmd(source: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """|mean phi(s) - mean phi(t)|² with the product of the ``kernel`` of each pair of source and target [n, d], [m, d].

    One pair is the discrepancy of features; features and probabilities make the joint one.
    """
    k = torch.stack([kernel(torch.cat([s, t])) for s, t in zip(source, target, strict=True)]).prod(0)
    n = len(source[0])
    return k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean()


def loss(at: Attachment, task: Any, model: Any, source: Any, target: Any, trade_off: float = 1.0) -> tuple[Tensor, int]:
    """sum_k gamma_k [CE(C_k(f_k), y) + trade_off · MMD of (f_k, p_k)] of an ``EarlyExit`` and the number of source rows.

    ``source`` is a batch with labels, ``target`` one whose labels, if there are any, are not read. The two pass the network one
    after the other.
    """
    method: Any = at.method
    with listening(at) as seen:
        task.loss(model, source)
    with listening(at) as unseen:
        model(**task.inputs(model, target))
    total, count = torch.zeros((), device=seen[0][0].device), 0
    for gamma, (ys, fs), (yt, ft) in zip(method.gammas or [1.0] * len(seen), seen, unseen, strict=True):
        mean, count = task.loss(Said(ys), source)
        apart = mmd((fs.float(), ys.float().softmax(-1)), (ft.float(), yt.float().softmax(-1)))
        total = total + gamma * (mean + trade_off * apart)
    return total, count

"""How the classes of a task relate to those that the source knows: p(source class | target class), as Co-Tuning learns it.

Co-Tuning for Transfer Learning (You, Kou, Long, Wang; NeurIPS 2020). All in float64.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.errors import BadData

STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1e0, 3e0, 1e1, 3e1, 1e2, 3e2, 1e3, 3e3, 1e4)
HELD = 5  # one row in so many of each class chooses among them


def relate_directly(probabilities: Tensor, labels: Tensor, classes: int) -> Tensor:
    """R[k] = the mean of the source's ``probabilities`` [n, C_s] over the rows of class k -> [classes, C_s].

    Raises:
        BadData: a class has no row.
    """
    counts = _count(labels, classes)
    sums = torch.zeros(classes, probabilities.shape[1], dtype=torch.float64, device=probabilities.device)
    return sums.index_add_(0, labels, probabilities.double()) / counts[:, None]


def relate_in_reverse(probabilities: Tensor, labels: Tensor, classes: int) -> Tensor:
    """R[k] = p(y_s | y_t = k), proportional to p(y_t = k | y_s) p(y_s) -> [classes, C_s].

    p(y_t | y_s) = softmax(c W[:, y_s]) of a softmax regression W [classes, C_s] from ``probabilities`` [n, C_s] to ``labels`` [n],
    whose regularisation is chosen and whose scale c is calibrated on rows held out: every fifth of each class, or all where no
    class has five. p(y_s) is the mean of the probabilities.

    Raises:
        BadData: a class has no row.
    """
    _count(labels, classes)
    p = probabilities.double()
    held = hold_out(labels)
    kept = ~held if held.any() else torch.ones_like(held)
    held = held if held.any() else kept
    W, best, most = torch.zeros(classes, p.shape[1], dtype=torch.float64, device=p.device), None, -1.0
    for strength in STRENGTHS:  # each fit starts from the last; of equally good ones the strongest counts
        W = fit(p[kept], labels[kept], W, strength)
        right = float(((p[held] @ W.T).argmax(1) == labels[held]).double().mean())
        if right >= most:
            best, most = W, right
    assert best is not None
    given = (best.T * calibrate(p[held] @ best.T, labels[held])).softmax(1)
    joint = given * p.mean(0)[:, None]
    return (joint / joint.sum(0)).T


def hold_out(labels: Tensor) -> Tensor:
    """True [n] for every fifth row of each class."""
    held = torch.zeros_like(labels, dtype=torch.bool)
    for label in labels.unique():
        held[(labels == label).nonzero().flatten()[HELD - 1 :: HELD]] = True
    return held


def fit(x: Tensor, labels: Tensor, start: Tensor, strength: float) -> Tensor:
    """The W [classes, features] of least |W|² / 2 + strength · (the summed cross-entropy of x Wᵀ), without an intercept."""
    def loss(W: Tensor) -> Tensor:
        return W.square().sum() / (2 * strength) + F.cross_entropy(x @ W.T, labels, reduction="sum")

    return _descend(loss, start)


def calibrate(logits: Tensor, labels: Tensor) -> Tensor:
    """The scale by which ``logits`` [n, classes] are likeliest."""
    def loss(scale: Tensor) -> Tensor:
        return F.cross_entropy(logits * scale, labels)

    return _descend(loss, torch.ones((), dtype=logits.dtype, device=logits.device))


def _descend(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    x = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([x], max_iter=300, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def evaluate() -> Tensor:
        optimiser.zero_grad()
        value = loss(x)
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(evaluate)
    return x.detach()


def _count(labels: Tensor, classes: int) -> Tensor:
    counts = torch.bincount(labels, minlength=classes)
    if bool((counts == 0).any()):
        lacking = (counts == 0).nonzero().flatten().tolist()
        raise BadData(f"the training rows hold none of class {', '.join(map(str, lacking[:5]))} (counted from 0), so nothing says "
                      "how it relates to what the source knows: add rows, or leave the label out")
    return counts

"""Choosing features by a linear head under a group lasso, one group for each feature.

Head2Toe: Utilizing Intermediate Representations for Better Transfer Learning (Evci, Dumoulin, Larochelle, Mozer; ICML 2022,
arXiv:2201.03529), after Model Selection and Estimation in Regression with Grouped Variables (Yuan, Lin; JRSS B 68, 2006).
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """How a head is trained: Adam whose rate falls to zero along a cosine, on batches in order, again and again."""

    steps: int
    rate: float
    batch: int


def group_lasso(W: Tensor, r: float = 2, p: float = 1) -> Tensor:
    """|| (||W_i||_r)_i ||_p over the rows W_i of W [features, classes]: the sum of their lengths, unless told otherwise."""
    return W.norm(r, dim=1).norm(p)


def unit(v: Tensor) -> Tensor:
    """v / ||v|| along the last axis; a zero vector stays one."""
    length = v.norm(dim=-1, keepdim=True)
    return v / torch.where(length > 0, length, 1.0)


def score(W: Tensor) -> Tensor:
    """||W_i||² of each feature, for W [features, classes]."""
    return W.square().sum(1)


def select(scores: Tensor, fraction: float) -> Tensor:
    """Positions, the best first, of the ``fraction`` of features with the highest scores, rounded down, but one at least."""
    return scores.argsort(descending=True, stable=True)[: max(1, int(fraction * len(scores)))]


def divide(chosen: Tensor, widths: list[int]) -> list[Tensor]:
    """Positions among all features as positions in each of the pieces that lie side by side, rising."""
    flags = torch.zeros(sum(widths), dtype=torch.bool, device=chosen.device)
    flags[chosen] = True
    return [piece.nonzero().flatten() for piece in flags.split(widths)]


def join(pieces: list[Tensor], columns: list[Tensor]) -> Tensor:
    """The chosen columns of each piece [N, width], brought to unit length again, side by side; empty ones leave nothing."""
    return torch.cat([unit(piece[:, own]) for piece, own in zip(pieces, columns, strict=True)], 1)


def fit(x: Tensor, y: Tensor, classes: int, recipe: Recipe, lasso: float = 0.0) -> tuple[Tensor, Tensor]:
    """W [features, classes] and b of a softmax head on x [N, features], under cross-entropy + lasso · sum_i ||W_i||.

    W starts Glorot-uniform, b at zero; b is not penalised. The start is always the same, so that one set of data has one choice
    of features, whatever the seed of a training.
    """
    with torch.enable_grad():
        start = nn.init.xavier_uniform_(torch.empty(x.shape[1], classes), generator=torch.Generator().manual_seed(0))
        W = nn.Parameter(start.to(x.device))
        b = nn.Parameter(torch.zeros(classes, device=x.device))
        optimiser = torch.optim.Adam([W, b], lr=recipe.rate)
        for step in range(recipe.steps):
            optimiser.param_groups[0]["lr"] = recipe.rate * (1 + math.cos(math.pi * step / recipe.steps)) / 2
            rows = torch.arange(step * recipe.batch, step * recipe.batch + min(recipe.batch, len(x)), device=x.device) % len(x)
            loss = F.cross_entropy(x[rows] @ W + b, y[rows])
            loss = loss + lasso * group_lasso(W) if lasso else loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return W.detach(), b.detach()


def choose_fraction(pieces: list[Tensor], y: Tensor, classes: int, recipe: Recipe, lasso: float, fractions: list[float],
                    folds: int) -> tuple[float, dict[float, float]]:
    """The fraction of features whose head is most often right in validation, the smallest of equal ones; accuracy by fraction.

    Each fold holds out every ``folds``-th row. Features are chosen, and heads trained, on the others.
    """
    right = dict.fromkeys(sorted(fractions), 0)
    for fold in range(min(folds, len(y))):
        held = torch.arange(len(y), device=y.device) % min(folds, len(y)) == fold
        own, rest = [p[~held] for p in pieces], [p[held] for p in pieces]
        scores = score(fit(torch.cat([unit(p) for p in own], 1), y[~held], classes, recipe, lasso)[0])
        for fraction in right:
            columns = divide(select(scores, fraction), [p.shape[1] for p in pieces])
            W, b = fit(join(own, columns), y[~held], classes, recipe)
            right[fraction] += int(((join(rest, columns) @ W + b).argmax(1) == y[held]).sum())
    accuracy = {fraction: count / len(y) for fraction, count in right.items()}
    return max(accuracy, key=lambda fraction: accuracy[fraction]), accuracy

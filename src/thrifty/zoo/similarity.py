"""How alike two layers are, by what they make of the same pictures: features X [n, p] and Y [n, q], columns centred.

CKA and the regression are those of Similarity of Neural Network Representations Revisited (Kornblith, Norouzi, Lee, Hinton; ICML
2019, arXiv:1905.00414), as Deep Model Reassembly (Yang, Zhou, Liu, Ye, Wang; NeurIPS 2022, arXiv:2210.17409) uses them.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Table = list[list[float]]


def cka(features: Sequence[Tensor]) -> Table:
    """||Y'X||² / (||X'X|| ||Y'Y||) of each two, in Frobenius norms: 1 for X and X, 0 where a side is constant."""
    return _aligned([x @ x.T for x in map(_centred, features)])


def rbf_cka(features: Sequence[Tensor]) -> Table:
    """The same with exp(-d² / (2 s²)) in the place of inner products; d are distances between rows, s² the median of theirs."""
    return _aligned([_centred(_centred(_kernel(x.double())).T) for x in features])


def regression(features: Sequence[Tensor]) -> Table:
    """The share of X that a linear map of Y explains, R², and of Y that one of X does: the mean of both."""
    held = [_centred(x) for x in features]
    spans = [_span(x) for x in held]
    share = [[_ratio(float((q.T @ x).square().sum()), float(x.square().sum())) for q in spans] for x in held]
    return [[(share[i][j] + share[j][i]) / 2 for j in range(len(held))] for i in range(len(held))]


KINDS: dict[str, Callable[[Sequence[Tensor]], Table]] = {"cka": cka, "rbf": rbf_cka, "r2": regression}


def _centred(x: Tensor) -> Tensor:
    x = x.double()
    return x - x.mean(0)


def _aligned(grams: Sequence[Tensor]) -> Table:
    """Cosines of the angles between centred Gram matrices [n, n]."""
    rows = torch.stack([gram.flatten() for gram in grams])
    sizes = rows.norm(dim=1, keepdim=True)
    rows = torch.where(sizes > 1e-12, rows / sizes.clamp_min(1e-12), torch.zeros_like(rows))
    table: Table = (rows @ rows.T).clamp(0, 1).tolist()
    return table


def _kernel(x: Tensor) -> Tensor:
    squares = torch.cdist(x, x).square()
    apart = squares[~torch.eye(len(x), dtype=torch.bool)]
    return torch.exp(-squares / (2 * apart.median().clamp_min(1e-12)))


def _span(x: Tensor) -> Tensor:
    """An orthonormal basis of the columns of x."""
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    span: Tensor = u[:, s > s.max().clamp_min(1e-300) * 1e-10]
    return span


def _ratio(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole > 1e-24 else 0.0

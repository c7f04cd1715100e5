"""Exact optimal transport between two sets of points of equal weight each.

Between sets of one size some optimum is a permutation, which SciPy's assignment finds; between others it is a linear program, which
SciPy's HiGHS solves: 1000 by 1000 points take half a second, 999 by 1000 a quarter of a minute.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from thrifty.core.errors import Missing
from thrifty.rank.reading import Array, Codes


def transport(cost: Array) -> tuple[Codes, Codes, Array]:
    """Pairs (source, target) and the ``mass`` that moves between them, 1 in all, at the least sum of cost [n, m] x mass.

    Raises:
        Missing: SciPy is not installed.
    """
    optimize = need_scipy()
    if len(cost) != cost.shape[1]:
        return solve_program(cost)
    rows, columns = optimize.linear_sum_assignment(cost)
    return rows, columns, np.full(len(cost), 1 / len(cost))


def solve_program(cost: Array) -> tuple[Codes, Codes, Array]:
    """The same for any n and m, by a linear program over n m masses."""
    optimize = need_scipy()
    from scipy import sparse

    sources, targets = cost.shape
    leaving = sparse.kron(sparse.eye(sources), np.ones((1, targets)))
    coming = sparse.kron(np.ones((1, sources)), sparse.eye(targets))
    mass = np.concatenate([np.full(sources, targets), np.full(targets, sources)])  # whole numbers, so that sums agree exactly
    found = optimize.linprog(cost.ravel(), A_eq=sparse.vstack([leaving, coming]).tocsr(), b_eq=mass, method="highs")
    moved = np.maximum(found.x, 0.0).reshape(cost.shape)
    rows, columns = np.nonzero(moved > 1e-9)
    kept = moved[rows, columns]
    return rows, columns, kept / kept.sum()


def need_scipy() -> Any:
    """The module `scipy.optimize`.

    Raises: Missing.
    """
    try:
        import scipy.optimize
    except ImportError as error:
        raise Missing('optimal transport needs SciPy: pip install "thrifty[rank]"') from error
    return scipy.optimize

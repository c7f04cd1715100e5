"""LogME on 10 000 x 768 features and 100 classes, beside the authors' algorithm column by column.

    python benchmarks/logme.py [--rows 10000] [--dimensions 768] [--classes 100] [--repeats 3]

The authors' algorithm is written here anew from its description (You et al., arXiv 2110.10545): a singular value decomposition of
the D x D products, then eleven passes at most of the fixed point for one class after the other. Prints the best time of each over
the repeats, their ratio and how far the two scores lie apart.
"""
from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from thrifty.rank import logme

Array = NDArray[np.float64]


def authors(features: Array, labels: NDArray[np.int64]) -> float:
    """The score as the authors compute it, for N > D."""
    rows, width = features.shape
    _, squares, right = np.linalg.svd(features.T @ features)
    kept = int((np.sqrt(squares) > 1e-10).sum())
    sigma, right = squares[:kept], right[:kept]
    left = features @ right.T / np.sqrt(sigma)
    return float(np.mean([one_class(left, sigma, (labels == k).astype(np.float64), rows, width) for k in range(labels.max() + 1)]))


def one_class(left: Array, sigma: Array, column: Array, rows: int, width: int) -> float:
    """The evidence of one column, per row."""
    along = (left.T @ column) ** 2
    beyond = column @ column - along.sum()
    alpha = beta = 1.0
    for _ in range(11):
        ratio = alpha / beta
        gamma = (sigma / (sigma + ratio)).sum()
        length = (sigma * along / (ratio + sigma) ** 2).sum()
        residual = (along / (1 + sigma / ratio) ** 2).sum() + beyond
        alpha, beta = gamma / (length + 1e-5), (rows - gamma) / (residual + 1e-5)
        if abs(alpha / beta - ratio) / ratio <= 1e-3:
            break
    evidence = (width * np.log(alpha) + rows * np.log(beta) - np.log(alpha + beta * sigma).sum() - beta * residual
                - alpha * length - rows * np.log(2 * np.pi))
    return float(evidence / (2 * rows))


def best(function: Callable[[Array, NDArray[np.int64]], float], features: Array, labels: NDArray[np.int64],
         repeats: int) -> tuple[float, float]:
    """The least seconds of ``repeats`` calls, and what they returned."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        value = float(function(features, labels))
        seconds.append(time.perf_counter() - start)
    return min(seconds), value


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rows", 10_000), ("dimensions", 768), ("classes", 100), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    random = np.random.default_rng(0)
    labels = random.integers(0, asked.classes, asked.rows)
    labels[:asked.classes] = np.arange(asked.classes)
    features = random.normal(size=(asked.rows, asked.dimensions)) + random.normal(size=(asked.classes, asked.dimensions))[labels]
    ours, score = best(logme, features, labels, asked.repeats)
    theirs, wanted = best(authors, features, labels, asked.repeats)
    print(f"{asked.rows} x {asked.dimensions}, {asked.classes} classes, {os.cpu_count()} cores, best of {asked.repeats}")
    print(f"thrifty {ours:.2f} s, the authors' algorithm {theirs:.2f} s, ratio {ours / theirs:.2f}")
    print(f"scores {score:.9f} and {wanted:.9f}, apart {abs(score - wanted):.1e}")


if __name__ == "__main__":
    main()

"""LEEP, the log expected empirical prediction.

C. V. Nguyen, T. Hassner, M. Seeger and C. Archambeau, "LEEP: a new measure to evaluate transferability of learned
representations", ICML 2020, arXiv 2002.12462.
"""
from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from thrifty.rank.reading import Array, Classes, read_classes, read_probabilities
from thrifty.rank.score import Score


def leep(source_probs: ArrayLike, labels: ArrayLike) -> Score:
    """(1/N) sum_i log( sum_z P(y_i | z) P_iz ), with P(y, z) = (1/N) sum over rows of class y of P_iz.

    ``source_probs`` P [N, S] are what the source model's own head says (softmax); ``labels`` [N] the classes wanted. In
    (-inf, 0]; a head that says the same of every row gives -H(Y). A source class of no mass at all is left out. Always finite,
    as a row counts among the evidence for its own class. O(N S).

    Raises:
        BadData: rows that are no distributions (logits), not one class per row, a single class.
    """
    probabilities = read_probabilities(source_probs)
    classes = read_classes(labels, len(probabilities))
    return Score(expected_log(probabilities, classes), classes=classes.count, source_classes=probabilities.shape[1])


def expected_log(probabilities: Array, classes: Classes) -> float:
    """LEEP of rows ``probabilities`` [N, S]."""
    joint = classes.sums(probabilities)
    mass = joint.sum(axis=0)
    conditional = np.divide(joint, mass, out=np.zeros_like(joint), where=mass > 0)
    total = sum(float(np.log(probabilities[classes.codes == k] @ conditional[k]).sum()) for k in range(classes.count))
    return total / len(probabilities)

"""NCE, the negative conditional entropy of the labels given the source model's labels.

A. T. Tran, C. V. Nguyen and T. Hassner, "Transferability and hardness of supervised classification tasks", ICCV 2019,
arXiv 1908.08142.
"""
from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from thrifty.rank.reading import read_classes
from thrifty.rank.score import Score


def nce(source_labels: ArrayLike, labels: ArrayLike) -> Score:
    """-H(Y | Z) = sum over (y, z) of P(y, z) log(P(y, z) / P(z)), in nats; P are shares of rows, 0 log 0 = 0.

    ``source_labels`` [N] are the classes of the source task that the model gives the rows (argmax), or a second labelling;
    ``labels`` [N] the classes wanted. In [-log C, 0]; 0 if the source class tells the class, -H(Y) if it tells nothing. One
    row per class is a source class that tells everything: 0 says nothing then. O(N log N); invariant to renumbering either.

    Raises:
        BadData: not one class per row, or a single class.
    """
    wanted = read_classes(labels)
    source = read_classes(source_labels, len(wanted.codes), "source_labels", least=1)
    pairs, counts = np.unique(source.codes * wanted.count + wanted.codes, return_counts=True)  # int64: cannot overflow
    joint = counts / len(wanted.codes)
    given = source.shares[pairs // wanted.count]
    return Score(float(np.sum(joint * np.log(joint / given))), classes=wanted.count, source_classes=source.count)

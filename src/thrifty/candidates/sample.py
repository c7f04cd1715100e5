"""Which rows the candidates are shown: training rows only, every class in its share."""
from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thrifty.core.errors import BadData, Unfit
from thrifty.data import Dataset
from thrifty.data.splits import apportion

TASKS = ("text-classification", "regression", "image-classification")


@dataclass(frozen=True)
class Sample:
    """``rows`` by role, without labels; their ``labels`` [n], class numbers or numbers; ``names`` of the classes, None if none."""

    task: str
    rows: Mapping[str, Sequence[Any]]
    labels: NDArray[Any]
    names: list[str] | None

    @property
    def regression(self) -> bool:
        """Whether labels are numbers to regress on."""
        return self.names is None


def draw(dataset: Dataset, count: int | None, seed: int) -> Sample:
    """``count`` training rows of ``dataset`` in their order, or all there are; validation and test rows are not looked at.

    Raises:
        Unfit: a task that has no one class or number per example. BadData: fewer rows than classes, rows of one class only, or
            labels that are all one number.
    """
    if dataset.task not in TASKS:
        raise Unfit(f"models are ranked by one vector and one class or number per example, and {dataset.task} has none: ranking "
                    f"serves {', '.join(TASKS)}")
    table = dataset.splits["train"]
    labels = np.asarray(table["label"])
    wanted = len(labels) if count is None else min(count, len(labels))
    kinds, codes = np.unique(labels, return_inverse=True)
    if len(kinds) < 2:
        only = dataset.labels[int(kinds[0])] if dataset.labels else kinds[0].item()
        raise BadData(f"all {len(labels)} training rows are {only!r}: with one there is nothing to tell apart")
    if dataset.labels is None:
        kept = sorted(random.Random(seed).sample(range(len(labels)), wanted))
    elif wanted < len(kinds):
        raise BadData(f"{wanted} rows for {len(kinds)} classes: every class needs one at least, so take {len(kinds)} or more")
    else:
        kept = _draw_classes(codes, wanted, seed)
    rows = {role: [column[i] for i in kept] for role, column in table.items() if role != "label"}
    return Sample(dataset.task, rows, labels[kept], dataset.labels)


def _draw_classes(codes: NDArray[np.int64], count: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    sizes = np.bincount(codes)
    wanted = np.minimum(apportion(count, (sizes / len(codes)).tolist()), sizes)  # a class may have fewer than its share rounds to
    drawn = [generator.sample(np.flatnonzero(codes == k).tolist(), int(size)) for k, size in enumerate(wanted)]
    return sorted(i for part in drawn for i in part)

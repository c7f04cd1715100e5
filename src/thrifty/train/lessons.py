"""What a method is shown when it is attached."""
from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import TYPE_CHECKING, Any

from torch import Tensor

from thrifty.core.errors import NoSuchSetting
from thrifty.data.augmenting import find
from thrifty.data.support import read_support
from thrifty.tasks.image_classification import ImageClassification

if TYPE_CHECKING:
    from thrifty.tasks import Task
    from thrifty.train.job import Job


def lessons(job: Job, seed: int) -> Lessons:
    """The training rows, or the pictures of a folder that the method asks for.

    Raises:
        BadData: see `read_support`.
    """
    assert job.material is not None
    folder = job.method.looks_at()
    return Lessons(job, job.task.encode(read_support(folder, job.task.labels or ())) if folder else job.material.train, seed)


class Lessons:
    """Encoded rows in batches, as often as somebody asks, always in one order; pictures also as chance lets them be seen."""

    def __init__(self, job: Job, examples: list[dict[str, Any]], seed: int) -> None:
        self.job, self.examples, self.seed = job, examples, seed

    @property
    def task(self) -> Task:
        """Of which task the rows are."""
        return self.job.task

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self.job.batches(self.job.task, self.examples)

    def view(self, recipe: str, turn: int) -> Iterator[dict[str, Tensor]]:
        """All rows once, their pictures changed by the ``recipe`` (`thrifty.data.augmenting.find`); other ``turn``, other chance.

        Raises:
            NoSuchSetting: the rows are no pictures, or there is no such recipe.
        """
        if not isinstance(self.job.task, ImageClassification):
            raise NoSuchSetting(f"{recipe!r}: rows of {self.job.task.name} are no pictures, so there are no views of them")
        varying = copy(self.job.task)
        varying.recipe = find(recipe)
        return self.job.batches(varying, varying.vary(self.examples, self.seed, turn))

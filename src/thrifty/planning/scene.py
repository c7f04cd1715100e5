"""Scene: a training with everything but its method, and a model whose numbers nobody will read."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from thrifty import tasks
from thrifty.core import Method
from thrifty.data import Dataset
from thrifty.models import Backbone, wrap
from thrifty.models.from_timm import head_path
from thrifty.models.outline import find_config, outline
from thrifty.models.preprocessing import load_image_processor, load_tokenizer
from thrifty.planning.standins import Pictures, Words
from thrifty.tasks import Task
from thrifty.train.job import Job
from thrifty.train.limits import find_limits
from thrifty.train.mixture import arrange
from thrifty.train.precision import Precision
from thrifty.train.predicting import length
from thrifty.train.processes import Processes
from thrifty.train.settings import Settings
from thrifty.train.training import Examples, Material

ROUNDS = 2  # of accumulated batches that are rehearsed: gradients of the first are there while the second runs, as in any later one


@dataclass(frozen=True)
class Scene:
    """``largest`` are the rows of the two batches that take most memory, ``usual`` those of one that takes the mean time. ``rows``
    are how many there are to train on and to validate on, None where that is not known."""

    backbone: Backbone
    form: str
    dataset: Dataset
    settings: Settings
    processes: Processes
    precision: Precision
    largest: Examples
    usual: Examples
    rows: tuple[int, int] | None

    @property
    def named(self) -> bool:
        """Whether the model was given by its name, and so can be loaded in other ways."""
        return self.backbone.source.get("kind") == "outline"

    def job(self, backbone: Backbone, method: Method, settings: Settings) -> Job:
        """The run that would be, of a method on a drawn ``backbone``, with ``settings`` that have no gaps."""
        rounds = min(ROUNDS, settings.accumulate)
        held = "full" if self.named else settings.weights  # of a named model they are packed already
        few = replace(settings, accumulate=rounds, seeds=1, cache="off", start=None, weights=held)
        job = Job(backbone, self.form, method, self.dataset, few, Path(), {}, self.processes, self.precision, shown=False)
        job.material = Material(self.largest[: few.batch * rounds], self.largest[:1], self.dataset.splits["validation"])
        return job

    def change(self, **settings: Any) -> Scene:
        """The same with other settings of training; with a smaller batch, in smaller steps."""
        changed = replace(self.settings, **settings)
        return replace(self, settings=changed, usual=self.usual[: changed.batch])


def set_scene(backbone: Backbone, form: str, dataset: Dataset, settings: Settings, processes: Processes, precision: Precision,
              rows: tuple[int, int] | None, real: bool = True) -> Scene:
    """Encode the training rows and find those of the largest and of a usual step; of rows that are not ``real`` any will do.

    Raises:
        ThriftyError: as a run would, of rows or settings that the task cannot use.
    """
    task: Task = tasks.get(dataset.task, backbone, dataset.labels, **find_limits(dataset, settings))
    train = dataset.splits["train"]
    task.fit(train)
    examples = task.encode(train)
    largest = find_largest(examples, ROUNDS * settings.batch) if real else examples
    usual = find_usual(examples, settings) if real else examples[: settings.batch]
    return Scene(backbone, form, dataset, settings, processes, precision, largest, usual, rows)


def find_largest(examples: Examples, size: int) -> Examples:
    """The ``size`` longest rows, and near their beginning the one with most to write, as a batch is as wide as its widest row."""
    found = sorted(examples, key=length, reverse=True)[:size]
    widest = max(examples, key=lambda example: len(example.get("labels", ())))
    if not any(example is widest for example in found[:2]):
        found[1:] = [widest, *(example for example in found[1:] if example is not widest)]
    return found[:size]


def find_usual(examples: Examples, settings: Settings) -> Examples:
    """The rows of that step of the first epoch whose longest row is nearest to the mean of all steps'."""
    order = arrange(examples, settings.batch, settings.seed, settings.temperature, settings.cap, settings.epochs or 1.0)
    steps = [[examples[row] for row in order.step(step)] for step in range(order.per_epoch)]
    whole = [rows for rows in steps if len(rows) == len(steps[0])] or steps
    widths = [max(map(length, rows)) for rows in whole]
    mean = math.fsum(widths) / len(widths)
    return whole[min(range(len(whole)), key=lambda step: abs(widths[step] - mean))]


def outline_backbone(model: str | nn.Module | Backbone, form: str, labels: Sequence[str] | None, reads: bool,
                     side: int | None = None) -> Backbone:
    """The model, without weights where it is named; and what prepares its input, the real one if rows are to be read.

    ``side`` is that of the pictures that a stand-in makes.

    Raises:
        NoSuchSetting, BrokenArtifact: there is no such model, or it lacks what reads its input.
    """
    if not isinstance(model, str):
        given = model if isinstance(model, Backbone) else wrap(model)
        return given if reads else replace(given, preprocess=stand_in(form, given.model, side))
    drawn: Any = outline(model, form, labels if labels is not None else 2)
    new, source = [], {"id": model, "kind": "outline"}
    if model.startswith("timm:"):
        head = head_path(drawn) + "."
        new = [name for name, _ in drawn.named_parameters() if name.startswith(head)]
    prepare = read_input(model, form, drawn) if reads else stand_in(form, drawn, side)
    return Backbone(drawn, prepare, {**source, "new_tensors": new})


def read_input(name: str, form: str, model: nn.Module) -> Any:
    """The tokenizer or image processor of a model."""
    if name.startswith("timm:"):
        import timm

        data: Any = timm.data
        return data.create_transform(**data.resolve_model_data_config(model), is_training=False)
    folder = find_config(name)
    return load_image_processor(folder, name)[0] if form == "image-classification" else load_tokenizer(folder, name, model)[0]


def stand_in(form: str, model: Any, side: int | None) -> Any:
    """What makes rows of a given size, without files of the model."""
    if form != "image-classification":
        return Words()
    config = getattr(model, "config", None)
    own = getattr(config, "image_size", None) or (getattr(model, "default_cfg", None) or {}).get("input_size", (3, 224, 224))[-1]
    return Pictures(getattr(config, "num_channels", 3), side or (own if isinstance(own, int) else own[-1]))


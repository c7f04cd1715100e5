"""Several tasks at once, learned by one model: each batch belongs to one of them, and what is done with it is that task's."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.core.errors import BadData, NoSuchSetting, nearest
from thrifty.core.routing import tell
from thrifty.data.several import columns_from, naming
from thrifty.evaluate.intervals import bootstrap, resample_within
from thrifty.evaluate.weighing import Array, Counts, Statistic
from thrifty.models.backbone import Backbone
from thrifty.models.kinds import LIKELIHOOD
from thrifty.models.together import outputs
from thrifty.tasks.getting import get
from thrifty.tasks.task import Batch, Prediction, Table, Task

MEAN = "mean_of_tasks"


class Several(Task):
    """Tables are {"task": names, "row": rows}, as `thrifty.data.several` makes them; examples and batches say their task.

    ``labels`` are by task, and the one limit, ``parts``, holds for each task its kind and its limits:
    {"rte": {"task": "text-classification", "max_length": 128}, "stsb": {"task": "regression"}}.

    Metrics are those of every task, as "rte.accuracy", and `MEAN`, which selects: the mean of the metrics by which the tasks
    select. The model is told which task a batch belongs to before it sees it (`thrifty.task`).
    """

    name = "several"
    scores = (MEAN,)

    def __init__(self, backbone: Backbone, labels: Mapping[str, Any] | None = None, *,
                 parts: Mapping[str, Mapping[str, Any]]) -> None:
        self.backbone, self.metric = backbone, MEAN
        self.parts: dict[str, Task] = {}
        for name, limits in parts.items():
            with naming(name):
                given = {key: value for key, value in limits.items() if key != "task"}
                self.parts[name] = get(limits["task"], backbone, (labels or {}).get(name), **given)
        self.labels: Any = {name: part.labels for name, part in self.parts.items()}
        self.head_parameters = list(dict.fromkeys(p for part in self.parts.values() for p in part.head_parameters))
        self.head = "head" if self.head_parameters else None

    @property
    def limits(self) -> dict[str, Any]:  # type: ignore[override]
        """The kinds and limits of the tasks, plain JSON."""
        return {"parts": {name: {"task": part.name, **part.limits} for name, part in self.parts.items()}}

    @property
    def truncated(self) -> int:  # type: ignore[override]
        """Examples that were cut, of all tasks."""
        return sum(part.truncated for part in self.parts.values())

    @property
    def outputs(self) -> list[int]:
        """How many outputs each task's head has; empty if they have none, as all say what they say in text."""
        heads = [outputs(part.name, part.labels) for part in self.parts.values() if part.has_head and part.name not in LIKELIHOOD]
        return heads if len(heads) == len(self.parts) else []

    def part(self, name: str | None) -> Task:
        """The task called ``name``.

        Raises: NoSuchSetting.
        """
        if name not in self.parts:
            raise NoSuchSetting(f"say which task is meant (--task-name): {', '.join(self.parts)}" if name is None else
                                f"there is no task {name!r}." + nearest(name, self.parts, 40))
        return self.parts[name]

    def split(self, table: Table) -> Iterator[tuple[str, list[int], Table]]:
        """For each task that the table holds: its name, the places of its rows, and those rows as a table of columns."""
        places: dict[str, list[int]] = {}
        for place, name in enumerate(table["task"]):
            places.setdefault(name, []).append(place)
        for name, rows in places.items():
            self.part(name)
            yield name, rows, columns_from([table["row"][place] for place in rows])

    def fit(self, table: Table) -> None:
        """Each task on its own rows."""
        for name, _, own in self.split(table):
            with naming(name):
                self.parts[name].fit(own)

    def encode(self, table: Table) -> list[dict[str, Any]]:
        """The examples of each task, each with the name of its ``task``."""
        found: list[dict[str, Any]] = [{} for _ in table["task"]]
        for name, rows, own in self.split(table):
            with naming(name):
                for place, example in zip(rows, self.parts[name].encode(own), strict=True):
                    found[place] = {**example, "task": name}
        return found

    def vary(self, examples: Sequence[dict[str, Any]], seed: int, step: int, view: int = 0) -> list[dict[str, Any]]:
        """Each example as its task does it."""
        return [self.part(example["task"]).vary([example], seed, step, view)[0] for example in examples]

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """The batch that their task makes of them, and the name of the ``task``.

        Raises: BadData for examples of more than one task.
        """
        names = list(dict.fromkeys(example["task"] for example in examples))
        if len(names) != 1:
            raise BadData(f"a batch belongs to one task, not to {' and '.join(map(repr, names))}.")
        return {**self.part(names[0]).collate(examples), "task": names[0]}

    def turn(self, model: nn.Module, batch: Batch) -> tuple[Task, Batch]:
        """The batch's task and the batch without its name, which the model has been told."""
        name: Any = batch["task"]
        tell(model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model, name)
        return self._own(batch)

    def inputs(self, model: nn.Module, batch: Batch) -> Batch:
        """The part of a batch that is the model's input."""
        return self._own(batch)[0].inputs(model, self._own(batch)[1])

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """That of the batch's task."""
        part, own = self.turn(model, batch)
        return part.loss(model, own)

    @torch.no_grad()
    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Those of the batch's task."""
        part, own = self.turn(model, batch)
        return part.predict(model, own)

    @torch.no_grad()
    def judge(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """What the batch's task can be judged by."""
        part, own = self.turn(model, batch)
        return part.judge(model, own)

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the frozen model sees, which knows no tasks [B, D]."""
        part, own = self._own(batch)
        return part.features(model, own)

    def statistics(self, predictions: Sequence[Prediction], table: Table) -> dict[str, Statistic]:
        """The mean over tasks, if each has the metric by which it selects, and every metric of every task."""
        found: dict[str, Statistic] = {}
        selecting: list[Statistic] = []
        for name, rows, own in self.split(table):
            with naming(name):
                measured = self.parts[name].statistics([predictions[place] for place in rows], own)
            by_name = {metric: _of(rows, statistic) for metric, statistic in measured.items()}
            selecting += [by_name[metric] for metric in [self.parts[name].metric] if metric in by_name]
            found |= {f"{name}.{metric}": statistic for metric, statistic in by_name.items()}

        def mean(counts: Counts) -> Array:
            return np.asarray(np.mean([statistic(counts) for statistic in selecting], axis=0))

        return {MEAN: mean, **found} if len(selecting) == len(self.parts) else found

    def resamples(self, n: int, table: Table, seed: int = 0) -> Iterator[Counts]:
        """Each task's rows are resampled on their own."""
        return resample_within([(rows, self.parts[name].groups(own)) for name, rows, own in self.split(table)], seed)

    def interval(self, predictions: Sequence[Prediction], table: Table, seed: int = 0) -> dict[str, tuple[float, float]]:
        """For each task what it would be alone, and that of the mean."""
        found = self.statistics(predictions, self._checked(predictions, table))
        intervals = {MEAN: bootstrap(found[MEAN], len(predictions), draws=self.resamples(len(predictions), table, seed))} \
            if MEAN in found else {}
        for name, rows, own in self.split(table):
            alone = self.parts[name].interval([predictions[place] for place in rows], own, seed)
            intervals |= {f"{name}.{metric}": ends for metric, ends in alone.items()}
        return intervals

    def majority(self, train_table: Table, table: Table) -> list[Prediction]:
        """Each task's own."""
        learned = {name: own for name, _, own in self.split(train_table)}
        found: list[Prediction] = [{} for _ in table["task"]]
        for name, rows, own in self.split(table):
            for place, said in zip(rows, self.parts[name].majority(learned[name], own), strict=True):
                found[place] = said
        return found

    def _own(self, batch: Batch) -> tuple[Task, Batch]:
        name: Any = batch["task"]
        return self.part(name), {key: value for key, value in batch.items() if key != "task"}



def _of(rows: list[int], statistic: Statistic) -> Statistic:
    """A statistic of some rows as one of all."""
    return lambda counts: statistic(counts[:, rows])

"""What is measured at the end, task by task: of one task there is one part, the whole."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from thrifty.data import Several as SeveralSets
from thrifty.tasks import Task
from thrifty.tasks.several import Several
from thrifty.train.job import Job
from thrifty.train.mixture import rates_of
from thrifty.train.results import Answers
from thrifty.train.rows import write_out
from thrifty.train.training import Examples, Material

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """The test rows of one task, of which ``places`` are the places among all; the ``name`` of the only task is None."""

    name: str | None
    task: Task
    places: Sequence[int]
    train: Any
    table: Any
    examples: Examples

    def of(self, values: Sequence[T]) -> list[T]:
        """Those of ``values``, one for each of all rows, that belong to this task."""
        return [values[place] for place in self.places]

    def write_out(self, answers: Answers, seed: int) -> list[dict[str, Any]]:
        """This task's lines of ``predictions.jsonl``; ``answers`` are of all rows."""
        lines = write_out(self.task, self.of(answers), self.table, seed)
        return lines if self.name is None else [{**line, "task": self.name} for line in lines]


def divide(job: Job, table: Any, examples: Examples) -> list[Part]:
    """The test rows by task."""
    train = job.dataset.splits["train"]
    if not isinstance(job.task, Several):
        return [Part(None, job.task, range(len(examples)), train, table, examples)]
    learned = {name: own for name, _, own in job.task.split(train)}
    return [Part(name, job.task.parts[name], places, learned[name], own, [examples[place] for place in places])
            for name, places, own in job.task.split(table)]


def materials(job: Job) -> Iterator[tuple[str | None, Task, Material]]:
    """What training learned from and was judged by, by task."""
    whole = job.material
    assert whole is not None
    if not isinstance(job.task, Several):
        yield None, job.task, whole
        return
    for name, task in job.task.parts.items():
        train, validation = ([e for e in rows if e["task"] == name] for rows in (whole.train, whole.validation))
        yield name, task, replace(whole, train=train, validation=validation)


def merge(parts: Sequence[Part], said: Mapping[str | None, Mapping[str, Answers]]) -> dict[str, Answers]:
    """What each baseline says of all rows, if it says something of every task."""
    found: dict[str, Answers] = {}
    for name in said[parts[0].name]:
        if all(name in said[part.name] for part in parts):
            answers = {place: answer for part in parts for place, answer in zip(part.places, said[part.name][name], strict=True)}
            found[name] = [answers[place] for place in range(len(answers))]
    return found


def describe(job: Job, parts: Sequence[Part], rivals: Mapping[str | None, list[dict[str, Any]]]) -> dict[str, Any]:
    """What metrics.json says of each of several tasks, with its baselines; of one task nothing."""
    sets = job.dataset
    if not isinstance(sets, SeveralSets):
        return {}
    items = {name: {"train": count(own.splits["train"]), "validation": count(own.splits["validation"]), "test": own.test_rows}
             for name, own in sets.parts.items()}
    rates = rates_of({name: rows["train"] for name, rows in items.items()}, job.settings.temperature, job.settings.cap,
                     job.settings.epochs or 1.0)
    return {"tasks": {part.name: {
        "task": part.task.name, "metric": part.task.metric, "labels": part.task.labels, "rate": rates[str(part.name)],
        "items": items[str(part.name)], "baselines": rivals[part.name]} for part in parts}}


def count(table: Mapping[str, Sequence[Any]]) -> int:
    """How many rows a table has."""
    return len(next(iter(table.values())))

"""The end of a run: the test split is read, everything is measured on it once, and the files are written."""
from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from thrifty import artifact, report
from thrifty.models.kinds import LIKELIHOOD
from thrifty.report.schema import check
from thrifty.tasks import Task
from thrifty.tasks.several import Several
from thrifty.train import baselines, parts, results
from thrifty.train.environment import environment
from thrifty.train.files import write_json, write_lines
from thrifty.train.folder import clear, size
from thrifty.train.job import Job, Trained
from thrifty.train.memory import peak
from thrifty.train.predicting import answer
from thrifty.train.run import Run
from thrifty.train.warnings import warnings

Rival = dict[str, Any]  # a baseline, as metrics.json holds it


def finish(job: Job, trained: Sequence[Trained], command: str | None) -> Run:
    """Measure all seeds and baselines on the test split, write the folder, and tidy it."""
    features, began = take_features(job), time.monotonic()
    table = job.dataset.test()
    examples = job.task.encode(table)
    answers = [predict(job, one, examples) for one in trained]
    seconds = time.monotonic() - began
    shares = parts.divide(job, table, examples)
    rivals, by_task = measure_baselines(job, answers, table, shares, features)
    if not job.processes.main:
        job.processes.wait()
        return Run(job.folder, {})
    best = max(trained, key=lambda one: one.log.best_value or 0.0)
    keep(best.adapter, job.folder / "adapter")
    lines = [line for one, said in zip(trained, answers, strict=True) for part in shares for line in part.write_out(said, one.seed)]
    metrics = describe(job, trained, [results.over_items(job.task, said, table) for said in answers], rivals, seconds, command)
    metrics |= parts.describe(job, shares, by_task) | ({"cache": job.cache} if job.cache else {})
    write_json(job.folder / "environment.json", {**environment(job.processes, job.precision), "model": job.backbone.source})
    write_json(job.folder / "data.json", job.dataset.record)
    write_lines(job.folder / "predictions.jsonl", lines)
    write_json(job.folder / "metrics.json", check(metrics))
    report.write(job.folder)
    for one in trained:
        clear(job.folder / f"seed-{one.seed}" / ("checkpoint" if len(trained) > 1 else ""))
    job.processes.wait()
    return Run(job.folder, metrics)


def predict(job: Job, one: Trained, examples: list[dict[str, Any]]) -> results.Answers:
    """What the adapter of one seed says of the test rows. It is read back from disk, as its user will, unless it is sharded."""
    model = job.backbone.model
    if one.state is None:
        with within_reach(job, one.adapter) as folder:
            at = artifact.load(model, folder, example=job.example())
    else:
        assert job.at is not None
        at = job.at
        at.load_state(one.state)
    try:
        return answer(job.task.predict, job.task, model, examples, job.settings.batch, job.processes, job.precision)
    finally:
        if one.state is None:
            at.detach()


@contextlib.contextmanager
def within_reach(job: Job, adapter: Path) -> Iterator[Path]:
    """The folder that the main process wrote; for others, which may run on another machine, a copy of it."""
    if job.processes.world == 1:
        yield adapter
        return
    held = job.processes.once(lambda: {file.name: file.read_bytes() for file in adapter.iterdir()})
    with tempfile.TemporaryDirectory() as spare:
        for name, data in held.items():
            Path(spare, name).write_bytes(data)
        yield Path(spare)


def predict_untrained(job: Job, part: parts.Part) -> results.Answers:
    """What the model said before it was trained."""
    with plain_model(job):
        return answer(part.task.predict, part.task, job.backbone.model, part.examples, job.settings.batch, job.processes,
                      job.precision)


@contextlib.contextmanager
def plain_model(job: Job) -> Iterator[None]:
    """The base model without what was trained. Unless it is sharded, nothing is attached any more."""
    if job.at is None or job.at.closed:
        yield
    else:
        with job.at.disabled():
            yield


def take_features(job: Job) -> dict[str | None, baselines.Features | None]:
    """What the frozen model sees in the training and validation rows of each task, for the linear baseline."""
    if job.at is not None and not job.processes.sharded:
        job.at.detach()
    if not job.settings.baselines or job.processes.sharded:
        return {}
    with plain_model(job):
        return {name: baselines.take_features(task, job.backbone.model, material, job.settings.batch, job.processes, job.precision)
                for name, task, material in parts.materials(job)}


def measure_baselines(job: Job, answers: list[results.Answers], table: Any, shares: list[parts.Part],
                      features: dict[str | None, Any]) -> tuple[list[Rival], dict[str | None, list[Rival]]]:
    """The baselines on the same test rows, and how far the run is ahead of each: over all rows, and by task."""
    said = {part.name: ask_baselines(job, part, features.get(part.name)) if job.settings.baselines else {} for part in shares}
    by_task: dict[str | None, list[Rival]] = {
        part.name: beside_baselines(part.task, [part.of(one) for one in answers], said[part.name], part.table)
        for part in shares if part.name is not None}
    return beside_baselines(job.task, answers, parts.merge(shares, said), table), by_task


def ask_baselines(job: Job, part: parts.Part, features: baselines.Features | None) -> dict[str, results.Answers]:
    """What each baseline says of one task's test rows."""
    said = {}
    if part.task.name not in LIKELIHOOD:  # an answer without looking has no likelihood
        said["majority"] = part.task.majority(part.train, part.table)
    if part.task.answers_untrained and not job.processes.sharded:
        said["untrained"] = predict_untrained(job, part)
    if features is not None:
        with plain_model(job):
            said["linear"] = features.predict(features.see(part.examples))
    return said


def beside_baselines(task: Task, answers: list[results.Answers], said: dict[str, results.Answers],
                     table: Any) -> list[Rival]:
    """Each baseline's scores, and how far the run is ahead of it."""
    return [{"name": name, "title": baselines.title(name, task.name), "test": results.over_items(task, theirs, table),
             "difference": results.ahead(task, answers, theirs, table)} for name, theirs in said.items()]


def describe(job: Job, trained: Sequence[Trained], measured: list[results.Estimates], rivals: list[Rival],
             seconds: float, command: str | None) -> dict[str, Any]:
    """The contents of metrics.json."""
    logs = [one.log for one in trained]
    busy = sum(log.train_seconds for log in logs)
    splits = job.dataset.splits
    return {
        "schema": 1, "created": datetime.now().astimezone().isoformat(timespec="seconds"), "command": command,
        "task": job.task.name, "method": job.method.name, "settings": job.method.settings(), "model": job.config["model"],
        "data": job.config["data"] if isinstance(job.config["data"], str) else ", ".join(job.config["data"]),
        "metric": job.task.metric, "labels": None if isinstance(job.task, Several) else job.task.labels,
        "items": {"train": rows(splits["train"]), "validation": rows(splits["validation"]), "test": job.dataset.test_rows},
        "test": results.over_seeds(measured), "baselines": rivals,
        "seeds": [{"seed": log.seed, "history": log.history, "evaluations": log.evaluations, "best_step": log.best_step,
                   "stopped": log.stopped, "test": test} for log, test in zip(logs, measured, strict=True)],
        "timing": {"train_seconds": busy, "evaluate_seconds": seconds + sum(log.evaluate_seconds for log in logs),
                   "steps": sum(log.step for log in logs),
                   "examples_per_second": sum(log.examples for log in logs) / busy if busy else None},
        "memory": peak(job.processes.device), "parameters": trained[0].parameters,
        "adapter_bytes": size(job.folder / "adapter"), "warnings": warnings(job, trained),
    }


def rows(table: Any) -> int:
    """How many rows a table has."""
    return len(next(iter(table.values())))


def keep(adapter: Path, place: Path) -> None:
    """A copy of the best seed's adapter at ``place``."""
    fresh = place.with_name(f".{place.name}.{os.getpid()}")
    clear(fresh)
    shutil.copytree(adapter, fresh)
    clear(place)
    os.replace(fresh, place)

"""What a reader should know before trusting a run, in whole sentences."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.tasks import Task
from thrifty.tasks.several import Several
from thrifty.train.job import Job, Trained


def about_data(record: Mapping[str, Any], task: Task) -> list[str]:
    """What was allowed, left out or cut in one dataset."""
    said = []
    if pairs := record.get("leaks", {}).get("pairs"):
        said.append(f"Rows of equal content lie in different splits ({pairs} pairs), as allowed: the score may be too good.")
    if skipped := record.get("skipped"):
        said.append(f"{len(skipped)} rows could not be used and were left out; data.json says which and why.")
    if task.truncated:
        said.append(f"{task.truncated:,} rows were longer than {task.limits.get('max_length')} tokens and were cut.")
    return said


def about_cache(cache: Mapping[str, Any]) -> list[str]:
    """How a training on kept states differs from one that computes them."""
    said = []
    if cache.get("still"):
        said.append(f"The frozen part was held still, as asked for: without the cache, {cache['still']}.")
    if cache.get("copies"):
        said.append(f"Of each training row {cache['copies']} draws were stored, which took turns by the epoch.")
    if cache.get("lost"):
        said.append(f"States of the frozen part were stored in {cache['precision']}, which changed them by {cache['lost']:.2g} "
                    "(root mean square, relative).")
    return said


def warnings(job: Job, trained: Sequence[Trained]) -> list[str]:
    """Everything about the data, the training and the machine that may make the numbers other than they seem."""
    record, said = job.dataset.record, []
    if isinstance(job.task, Several):
        for name, task in job.task.parts.items():
            said += [f"Task {name}: {sentence[0].lower()}{sentence[1:]}" for sentence in about_data(record["tasks"][name], task)]
        said += [f"{pair['rows']} test rows of task {pair['task']} have a text that task {pair['other']} trains on: if their "
                 "labels have to do with each other, the score may be too good." for pair in record["overlap"]]
    else:
        said += about_data(record, job.task)
    if job.left_behind:
        said.append(f"Of the adapter that training started from, {len(job.left_behind)} tensors have no place in this model and "
                    f"were left behind: {', '.join(job.left_behind[:3])}.")
    if job.unlike:
        said.append(f"The adapter that training started from saw pictures that were prepared otherwise: {'; '.join(job.unlike)}.")
    said += dict.fromkeys(note for one in trained for note in one.notes)
    said += about_cache(job.cache or {})
    if job.precision.warning:
        said.append(job.precision.warning)
    if job.processes.sharded and job.settings.baselines:
        said.append("Only the simplest baseline was measured, as weights were spread over processes.")
    if not job.settings.baselines:
        said.append("No baseline was measured, so nothing says what the score is worth.")
    last = [one.seed for one in trained if one.log.stopped == "finished" and one.log.best_step == one.log.step
            and len(one.log.evaluations) > 1]
    if last and job.settings.patience:
        seeds = f" (seed {', '.join(map(str, last))})" if len(trained) > 1 else ""
        said.append(f"The last evaluation was the best one{seeds}: more epochs might do better.")
    return said


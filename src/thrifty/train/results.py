"""From predictions to ``metrics.json``: estimates over items and over seeds, and the distance to the baselines."""
from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from thrifty.evaluate import compare, mean_interval
from thrifty.tasks import Task

Answers = list[dict[str, Any]]
Estimates = dict[str, dict[str, Any]]


def over_items(task: Task, answers: Answers, table: Any) -> Estimates:
    """Every metric of one set of answers with its bootstrap interval over the rows."""
    values, intervals = task.metrics(answers, table), task.interval(answers, table)
    found = {}
    for name, value in values.items():
        if math.isfinite(value):
            low, high = intervals.get(name, (math.nan, math.nan))
            known = math.isfinite(low) and math.isfinite(high)
            found[name] = {"value": value, "low": low if known else None, "high": high if known else None, "spread": None}
    return found


def over_seeds(parts: Sequence[Estimates]) -> Estimates:
    """The mean of each metric over seeds, Student's interval for it and the sample standard deviation; one seed as it is."""
    if len(parts) == 1:
        return parts[0]
    found = {}
    for name in parts[0]:
        values = [part[name]["value"] for part in parts if name in part]
        if len(values) == len(parts):
            mean, low, high = mean_interval(values)
            found[name] = {"value": mean, "low": low, "high": high, "spread": statistics.stdev(values)}
    return found


def ahead(task: Task, answers: Sequence[Answers], baseline: Answers, table: Any) -> dict[str, Any] | None:
    """The run's mean over seeds minus the baseline on the task's metric, paired over the same rows."""
    mine = [task.statistics(one, table) for one in answers]
    theirs = task.statistics(baseline, table)
    if task.metric not in theirs or any(task.metric not in one for one in mine):
        return None

    def average(counts: Any) -> Any:
        return sum(one[task.metric](counts) for one in mine) / len(mine)

    found = compare(average, theirs[task.metric], len(baseline), draws=task.resamples(len(baseline), table))
    if not all(map(math.isfinite, (found.difference, found.low, found.high))):
        return None
    return {"value": found.difference, "low": found.low, "high": found.high, "spread": None}

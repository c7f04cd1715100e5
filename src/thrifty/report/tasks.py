"""Several tasks that were learned together: each with its own result, as if it were a run of its own."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar, cast

from thrifty.report import numbers
from thrifty.report.files import Evaluation, Metrics, Seed
from thrifty.report.headline import result, verdicts
from thrifty.report.learning import scores
from thrifty.report.markup import section, text
from thrifty.report.reading import Results

V = TypeVar("V")


def by_task(results: Results) -> Iterator[Results]:
    """The results of each task: its metrics under their own names, its baselines and its predictions."""
    whole = results.metrics
    for name, part in whole["tasks"].items():
        own: Any = {**whole, "task": part["task"], "metric": part["metric"], "labels": part["labels"], "items": part["items"],
                    "baselines": part["baselines"], "test": _own(whole["test"], name),
                    "seeds": [_seed(seed, name, part["metric"]) for seed in whole["seeds"]]}
        yield replace(results, metrics=cast(Metrics, own), key=f"{name}-",
                      predictions=[p for p in results.predictions if p.get("task") == name])


def outcome(results: Results) -> str:
    """What came out of one task."""
    m = results.metrics
    name = results.key.removesuffix("-")
    rate, items = m["tasks"][name]["rate"], m["items"]
    kinds = f", {len(m['labels'])} labels" if m["labels"] else ""
    about = (f"{text(m['task'].replace('-', ' ').capitalize())}{kinds}.<br>{numbers.count(items['train'])} items to train on, "
             f"{numbers.count(items['validation'])} to choose by, {numbers.count(items['test'])} kept for the test.<br>"
             f"{numbers.share(rate, 1)} of the steps.")
    return section(f"Task {text(name)}", about, result(m) + verdicts(m) + scores(m["seeds"], m["metric"], f"{results.key}score"))


def _seed(seed: Seed, name: str, metric: str) -> Seed:
    evaluations = [cast(Evaluation, {**e, "values": _own(e["values"], name)}) for e in seed["evaluations"]]
    return cast(Seed, {**seed, "test": _own(seed["test"], name), "evaluations": [e for e in evaluations if metric in e["values"]]})


def _own(values: Mapping[str, V], name: str) -> dict[str, V]:
    """The values of one task, without its name before theirs."""
    return {metric.removeprefix(f"{name}."): value for metric, value in values.items() if metric.startswith(f"{name}.")}

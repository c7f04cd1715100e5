"""Checks that the files of a finished run say what ``thrifty.report.files`` says they must."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from thrifty.core.errors import BrokenArtifact, nearest
from thrifty.report.files import Estimate, Metrics, Prediction, TaskPart
from thrifty.report.fitting import WORDS, fit, show

UNREADABLE = ("text-classification", "multiple-choice")    # tasks whose answer may be written so that it cannot be read
PICTURE = re.compile(r"data:image/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/]+={0,2}")


def check(metrics: object, place: str = "metrics.json") -> Metrics:
    """``metrics`` itself, once it is known to be what ``Metrics`` promises.

    Raises:
        BrokenArtifact: a key is missing, unknown, of another type, or contradicts another; the message names it by its path.
    """
    fit(metrics, Metrics, place)
    found: Metrics = metrics  # type: ignore[assignment]
    labels = found["labels"]
    if labels is not None and len(set(labels)) != len(labels):
        raise BrokenArtifact(f"{place}: labels holds the same name twice")
    if labels is None and found["task"].endswith("classification"):
        raise BrokenArtifact(f"{place}: labels is null, but {found['task']} has labels")
    if (found["task"] == "several") != ("tasks" in found):
        raise BrokenArtifact(f"{place}: tasks is there if and only if task is 'several', which it is "
                             f"{'' if found['task'] == 'several' else 'not'}")
    if len({s["seed"] for s in found["seeds"]}) != len(found["seeds"]):
        raise BrokenArtifact(f"{place}: seeds holds the same seed twice")
    if not found["seeds"]:
        raise BrokenArtifact(f"{place}: seeds is empty; it holds one entry per training")
    for name, part in found.get("tasks", {}).items():
        _check_part(found, name, part, place)
    measured = [("test", found["test"])] + [(f"seeds[{i}].test", s["test"]) for i, s in enumerate(found["seeds"])]
    measured += [(f"baselines[{i}].test", b["test"]) for i, b in enumerate(found["baselines"])]
    for path, values in measured:
        if values:
            _need(found["metric"], values, place, path)
        for name, estimate in values.items():
            _ordered(estimate, place, f"{path}.{name}")
    for i, baseline in enumerate(found["baselines"]):
        if baseline["difference"] is not None:
            _ordered(baseline["difference"], place, f"baselines[{i}].difference")
    for i, seed in enumerate(found["seeds"]):
        for j, evaluation in enumerate(seed["evaluations"]):
            _need(found["metric"], evaluation["values"], place, f"seeds[{i}].evaluations[{j}].values")
        if seed["best_step"] is not None and seed["best_step"] not in {e["step"] for e in seed["evaluations"]}:
            raise BrokenArtifact(f"{place}: seeds[{i}].best_step is {seed['best_step']}, but no evaluation has that step")
    return found


def _check_part(metrics: Metrics, name: str, part: TaskPart, place: str) -> None:
    path = f"tasks.{name}"
    if part["labels"] is None and part["task"].endswith("classification"):
        raise BrokenArtifact(f"{place}: {path}.labels is null, but {part['task']} has labels")
    if metrics["test"]:
        _need(f"{name}.{part['metric']}", metrics["test"], place, "test")
    for i, baseline in enumerate(part["baselines"]):
        _need(part["metric"], baseline["test"], place, f"{path}.baselines[{i}].test")
        for metric, estimate in baseline["test"].items():
            _ordered(estimate, place, f"{path}.baselines[{i}].test.{metric}")
        if baseline["difference"] is not None:
            _ordered(baseline["difference"], place, f"{path}.baselines[{i}].difference")


def check_prediction(row: object, metrics: Metrics, place: str) -> Prediction:
    """``row`` itself, once it is known to be a ``Prediction`` that fits the task and labels of ``metrics``.

    Raises:
        BrokenArtifact: as ``check``; ``place`` says which line.
    """
    fit(row, Prediction, place)
    found: Prediction = row  # type: ignore[assignment]
    task, labels = _meant(found, metrics, place)
    if "image" in found and not PICTURE.fullmatch(found["image"]):
        raise BrokenArtifact(f"{place}: image is not a data:image/...;base64 address")
    if found["seed"] not in {s["seed"] for s in metrics["seeds"]}:
        raise BrokenArtifact(f"{place}: seed {found['seed']} is not one of the seeds in metrics.json")
    kinds: tuple[type, ...] = {"token-classification": (list,), "multiple-choice": (int,), "regression": (int, float),
                               "causal-generation": (str,), "seq2seq-generation": (str,), "contrastive": (list,)}.get(task, (str,))
    for key, value in (("target", found["target"]), ("prediction", found["prediction"])):
        if key == "prediction" and value is None and "written" in found and task in UNREADABLE:
            continue
        allowed = (*kinds, list) if key == "target" and task.endswith("generation") else kinds
        if not isinstance(value, allowed):
            raise BrokenArtifact(f"{place}: {key} must be {WORDS[kinds[-1]]} for {task}, found {show(value)}")
        if labels is not None and task.endswith("classification"):
            for name in value if isinstance(value, list) else [value]:
                if name not in labels:
                    raise BrokenArtifact(f"{place}: {key} {name!r} is not one of the labels.{nearest(str(name), labels)}")
    if task == "token-classification":
        _one_tag_each(found, place)
    if found["scores"] is not None:
        if task not in ("text-classification", "image-classification", "multiple-choice"):
            raise BrokenArtifact(f"{place}: scores must be null for {task}")
        choices = range(len(found.get("choices", found["scores"])))
        _likeliest(found, found["scores"], choices if task == "multiple-choice" else labels or [], place)
    return found


def _meant(row: Prediction, metrics: Metrics, place: str) -> tuple[str, list[str] | None]:
    """The kind of task that a prediction is of, and its labels."""
    parts, name = metrics.get("tasks"), row.get("task")
    if parts is None:
        if name is not None:
            raise BrokenArtifact(f"{place}: task is {name!r}, but the run has one task, which has no name")
        return metrics["task"], metrics["labels"]
    if name not in parts:
        raise BrokenArtifact(f"{place}: task is {show(name)}, which is none of the tasks.{nearest(str(name), parts)}")
    return parts[name]["task"], parts[name]["labels"]


def _one_tag_each(row: Prediction, place: str) -> None:
    lengths = [len(part) if isinstance(part, list) else None for part in (row["input"], row["target"], row["prediction"])]
    if None in lengths or len(set(lengths)) != 1:
        raise BrokenArtifact(f"{place}: input, target and prediction must be equally long lists, found lengths {lengths}")


def _likeliest(row: Prediction, scores: list[float], possible: Sequence[object], place: str) -> None:
    if len(scores) != len(possible):
        raise BrokenArtifact(f"{place}: scores holds {len(scores)} numbers where {len(possible)} are possible")
    if min(scores, default=0) < 0 or abs(sum(scores) - 1) > 0.01:
        raise BrokenArtifact(f"{place}: scores are not probabilities; they add up to {sum(scores):.3g}")
    given = dict(zip(possible, scores, strict=True))
    for key, value in (("target", row["target"]), ("prediction", row["prediction"])):
        if value not in given:
            raise BrokenArtifact(f"{place}: {key} is {show(value)}, which has no score")
    best = max(given, key=lambda one: given[one])
    if given[row["prediction"]] < given[best] - 1e-4:
        raise BrokenArtifact(f"{place}: prediction {row['prediction']!r} is not the likeliest by scores, which is {best!r}")


def _need(metric: str, values: Mapping[str, object], place: str, path: str) -> None:
    if metric not in values:
        raise BrokenArtifact(f"{place}: {path} lacks the primary metric {metric!r}.{nearest(metric, values)}")


def _ordered(estimate: Estimate, place: str, path: str) -> None:
    low, high = estimate["low"], estimate["high"]
    if (low is None) != (high is None) or (low is not None and high is not None and low > high):
        raise BrokenArtifact(f"{place}: {path} has the interval {low} to {high}")

"""What the files of a finished run say, key by key, and the checks that they do say it.

A run folder holds::

    metrics.json         one ``Metrics``                      (must be there)
    predictions.jsonl    one ``Prediction`` per line, test split, every seed
    config.json          the resolved settings, any JSON object
    environment.json     versions, processor, threads, precision, any JSON object
    data.json            the data record, any JSON object

Every key of ``Metrics`` is always present: what does not apply is ``null``, an empty list or an empty object, never absent,
and no other key is allowed. Numbers are finite (a loss that was not finite is ``null``). Shares are fractions (0.87, not 87).
"""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from thrifty.core.errors import BrokenArtifact, nearest
from thrifty.report.fitting import WORDS, fit, show

Task = Literal["text-classification", "image-classification", "token-classification", "multiple-choice", "regression",
               "causal-generation", "seq2seq-generation", "masked-language"]


class Estimate(TypedDict):
    """A number and how well it is known. With one seed the interval is over test items, with several over seeds."""

    value: float            # the point value; with several seeds their mean
    low: float | None       # lower end of the 95 % interval, null if none was computed
    high: float | None
    spread: float | None    # standard deviation over seeds, null with one seed


class Step(TypedDict):
    """One optimizer step, or the last of every few where a run is long."""

    step: int
    epoch: float
    loss: float | None      # mean training loss per item; null where it was not finite
    rate: float             # learning rate


class Evaluation(TypedDict):
    """One pass over the validation split."""

    step: int
    epoch: float
    values: dict[str, float]    # metric name -> value; holds ``Metrics.metric``, may hold "loss"


class Seed(TypedDict):
    """One training, from its seed to its test values."""

    seed: int
    history: list[Step]
    evaluations: list[Evaluation]
    best_step: int | None       # the step of the evaluation that was kept; null if there was none
    stopped: Literal["finished", "early", "interrupted"]
    test: dict[str, Estimate]   # metric name -> value, interval over items; empty if the test split was not read


class Baseline(TypedDict):
    """Something cheaper that the run has to beat, on the same test items."""

    name: str                       # "majority", "linear", ...
    title: str                      # fits into "better than <title>": "frozen features with a linear head"
    test: dict[str, Estimate]
    difference: Estimate | None     # the run minus this baseline on ``Metrics.metric``, paired over the same items


class Items(TypedDict):
    """Rows per split, after limits and skipped rows."""

    train: int
    validation: int
    test: int


class Timing(TypedDict):
    """Wall-clock, summed over seeds."""

    train_seconds: float
    evaluate_seconds: float
    steps: int                              # optimizer steps, summed over seeds
    examples_per_second: float | None       # training examples


class Memory(TypedDict):
    """The most memory that was held at once."""

    peak_bytes: int | None
    kind: Literal["process", "device"]      # resident memory of the process, or allocated on the accelerator


class Parameters(TypedDict):
    """Counts of numbers, not bytes."""

    base: int       # all parameters of the model before it was adapted
    tuner: int      # trainable, outside the head
    head: int       # trainable, in the head


class Metrics(TypedDict):
    """The whole of ``metrics.json``."""

    schema: Literal[1]
    created: str                    # when the run ended, ISO 8601 with offset
    command: str | None             # the command line that repeats it
    task: Task
    method: str                     # "lora"
    settings: dict[str, Any]        # the method's numbers: {"rank": 8, "where": "attn.q|attn.v"}
    model: str                      # as the user named it
    data: str                       # as the user named it
    metric: str                     # the primary metric, higher is better
    labels: list[str] | None        # the label space in order; for token classification the tags
    items: Items
    test: dict[str, Estimate]       # over all seeds; empty if the test split was not read
    baselines: list[Baseline]
    seeds: list[Seed]
    timing: Timing
    memory: Memory
    parameters: Parameters
    adapter_bytes: int | None       # size of the adapter folder on disk
    warnings: list[str]             # whole sentences in plain words, without markup; how a seed stopped is said by ``stopped``


class PredictionParts(TypedDict, total=False):
    """What only some predictions carry."""

    written: str            # what a language model wrote, where ``prediction`` was read from it
    image: str              # a small thumbnail as data:image/png;base64,... (png, jpeg, webp or gif)
    choices: list[str]      # multiple choice


class Prediction(PredictionParts):
    """One line of ``predictions.jsonl``.

    ``prediction`` is null where what was ``written`` names no label or choice, which is always wrong. Else
    ``target`` and ``prediction`` are label names for classification, lists of tag names (one per token) for token
    classification, the index of a choice for multiple choice, numbers for regression, texts for generation (there ``target``
    may be a list of references).
    """

    index: int                          # row of the test split
    seed: int
    input: str | list[str] | None       # a text, two texts, the tokens; null for images
    target: str | int | float | list[str]
    prediction: str | int | float | list[str] | None
    scores: list[float] | None          # probabilities in the order of ``labels`` or ``choices``; else null


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
    if len({s["seed"] for s in found["seeds"]}) != len(found["seeds"]):
        raise BrokenArtifact(f"{place}: seeds holds the same seed twice")
    if not found["seeds"]:
        raise BrokenArtifact(f"{place}: seeds is empty; it holds one entry per training")
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


def check_prediction(row: object, metrics: Metrics, place: str) -> Prediction:
    """``row`` itself, once it is known to be a ``Prediction`` that fits the task and labels of ``metrics``.

    Raises:
        BrokenArtifact: as ``check``; ``place`` says which line.
    """
    fit(row, Prediction, place)
    found: Prediction = row  # type: ignore[assignment]
    task, labels = metrics["task"], metrics["labels"]
    if "image" in found and not PICTURE.fullmatch(found["image"]):
        raise BrokenArtifact(f"{place}: image is not a data:image/...;base64 address")
    if found["seed"] not in {s["seed"] for s in metrics["seeds"]}:
        raise BrokenArtifact(f"{place}: seed {found['seed']} is not one of the seeds in metrics.json")
    kinds: tuple[type, ...] = {"token-classification": (list,), "multiple-choice": (int,), "regression": (int, float),
                               "causal-generation": (str,), "seq2seq-generation": (str,)}.get(task, (str,))
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

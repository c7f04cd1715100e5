"""Seeing: every row once with a candidate's frozen model, as one vector each, and what its own classifier says of the rows."""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from thrifty import tasks
from thrifty.candidates.candidate import Candidate
from thrifty.candidates.keeping import Examples, Look, compute, compute_all, describe, keep
from thrifty.candidates.sample import Sample
from thrifty.core.errors import BadData, Unfit
from thrifty.methods.guidance.reference import Reference
from thrifty.models import Backbone, load, wrap
from thrifty.models.source_head import name_classes
from thrifty.rank.discriminant import softmax
from thrifty.rank.reading import read_features, read_probabilities, same_rows
from thrifty.tasks import Task
from thrifty.tasks.task import predicting
from thrifty.train.memory import peak

Array = NDArray[np.float64]
SHOWN = 5  # names of source classes


@dataclass(frozen=True)
class Terms:
    """``batch`` rows go through a model at once, on ``device``; features are kept on disk if ``cache``; heads drawn by ``seed``."""

    batch: int
    device: torch.device
    cache: bool
    seed: int


@dataclass(frozen=True)
class Seen:
    """What one model sees: ``features`` [n, D]; ``general`` [m, D] of the source's rows; of its own classifier the
    ``probabilities`` [n, S] and the ``logits`` [n, S] they come from. ``about`` is plain JSON on how it was seen, and what it took.
    """

    name: str
    features: Array
    general: Array | None = None
    probabilities: Array | None = None
    logits: Array | None = None
    about: dict[str, Any] = field(default_factory=dict)


def see(candidate: Candidate, sample: Sample, source: Sample | None, terms: Terms) -> Seen:
    """What ``candidate`` sees in the rows of ``sample``, and in those of the ``source`` if there is one.

    Raises:
        ThriftyError: the model cannot be loaded or has no vector per row; features are no finite numbers, one vector per row.
    """
    began = time.monotonic()
    if candidate.model is None:
        return _ask(candidate, sample, source, began)
    task = _prepare(candidate, sample, terms)
    loaded = time.monotonic()
    parts = [sample, *([source] if source else [])]
    encoded = [task.encode(part.rows) for part in parts]
    with predicting(task.backbone.model):
        look, place = find_look(task, encoded[0], terms)
        taken = [_take(look, task, part, place, terms) for part in encoded]
    found = [read_features(values, f"the features of {candidate.name!r}") for values, _ in taken]
    logits = _ask_head(task.backbone, place, found[0])
    model, about = task.backbone.model, task.backbone.source
    return Seen(candidate.name, found[0], found[1] if source else None, None if logits is None else softmax(logits), logits, {
        "class": about["class"], "parameters": about["parameters"], "dimension": found[0].shape[1],
        "reads": place or "the mean of the last states", "bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "peak": peak(terms.device), "kept": terms.cache, "reused": all(known for _, known in taken), "truncated": task.truncated,
        "source_classes": None if logits is None else _describe_classes(candidate, logits.shape[1]), "notes": about["notes"],
        "seconds": {"load": loaded - began, "features": time.monotonic() - loaded}})


def find_look(task: Task, examples: Examples, terms: Terms) -> tuple[Look, str]:
    """How one vector per row is had, and the path of the layer that reads it; "" where the task says otherwise.

    It is what the last layer reads, if nothing below that layer is new; else what `Task.features` takes: the mean over tokens.
    """
    model, inputs_of = task.backbone.model, task.inputs
    if not task.answers_untrained:
        reference = Reference(str(task.backbone.source["id"]), task.backbone, terms.device)

        def read(batch: dict[str, Any]) -> torch.Tensor:
            return reference.features(task, inputs_of(model, batch))

        try:
            compute(read, task, examples, range(min(2, len(examples))), terms.device)
            return read, str(reference.path)
        except Unfit:
            pass
    return (lambda batch: task.features(model, batch)), ""


def _take(look: Look, task: Task, examples: Examples, place: str, terms: Terms) -> tuple[torch.Tensor, bool]:
    """Features of all examples, and whether they lay on disk."""
    if not terms.cache:
        return compute_all(look, task, examples, terms.batch, terms.device), False
    return keep(look, task, examples, terms.batch, terms.device, describe(task, examples, place))


def _prepare(candidate: Candidate, sample: Sample, terms: Terms) -> Task:
    given: Any = candidate.model
    if isinstance(given, str):
        backbone = load(given, sample.task, sample.names, seed=terms.seed)
    else:
        backbone = given if isinstance(given, Backbone) else wrap(given)
    backbone.model.to(terms.device)
    return tasks.get(sample.task, backbone, sample.names)


def _ask(candidate: Candidate, sample: Sample, source: Sample | None, began: float) -> Seen:
    """What functions of one's own answer; nothing is kept, as nothing says when they would answer otherwise."""
    assert candidate.features is not None
    said = f"the features of {candidate.name!r}"
    features = read_features(candidate.features(sample.rows), said)
    general = None if source is None else read_features(candidate.features(source.rows), said)
    probabilities = None
    if candidate.probabilities is not None:
        probabilities = read_probabilities(candidate.probabilities(sample.rows), f"the probabilities of {candidate.name!r}")
        same_rows(features, len(probabilities), "probabilities")
    for part, rows in ((features, sample), (general, source)):
        if part is not None and rows is not None and len(part) != len(rows.labels):
            raise BadData(f"{said} are {len(part)} for {len(rows.labels)} rows")
    return Seen(candidate.name, features, general, probabilities, None, {
        "class": "function", "parameters": None, "dimension": features.shape[1], "reads": "a function", "bytes": None,
        "peak": peak(torch.device("cpu")), "kept": False, "reused": False, "truncated": 0,
        "source_classes": None if probabilities is None else {"count": probabilities.shape[1], "names": None}, "notes": [],
        "seconds": {"load": 0.0, "features": time.monotonic() - began}})


def _ask_head(backbone: Backbone, place: str, features: Array) -> Array | None:
    """What the classifier that the checkpoint was saved with says of its features: logits [n, S], if there is one for them."""
    weight, bias = (backbone.head.get(f"{place}.{kind}") for kind in ("weight", "bias"))
    if not place or weight is None or weight.dim() != 2 or weight.shape[1] != features.shape[1] or len(weight) < 2:
        return None
    logits: Array = features @ weight.double().numpy().T
    return logits if bias is None else logits + bias.double().numpy()


def _describe_classes(candidate: Candidate, count: int) -> Mapping[str, Any]:
    names: Sequence[str] | None = name_classes(candidate.model) if isinstance(candidate.model, str) else None
    return {"count": count, "names": None if names is None else list(names[:SHOWN])}

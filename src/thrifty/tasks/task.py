"""What every task does, and what most of them do alike."""
from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.core.errors import BadData, NoSuchSetting, Unfit, nearest
from thrifty.evaluate.comparing import Comparison, compare
from thrifty.evaluate.intervals import bootstrap, resample
from thrifty.evaluate.weighing import Counts, Statistic
from thrifty.models.backbone import Backbone
from thrifty.models.kinds import check_task

Table = Mapping[str, Sequence[Any]]
Batch = dict[str, Tensor]
Prediction = dict[str, Any]


VIEW = "view:"  # before the name of an input: the same rows seen another time, as "view:pixel_values" of other crops


class Task(ABC):
    """Rows -> examples -> batch -> loss, and batch -> predictions -> metrics.

    Attributes:
        metric: name of the metric that selects, always higher is better.
        limits: every limit with its value, plain JSON: ``get(name, backbone, labels, **task.limits)`` is the same task again.
        truncated: how many examples ``encode`` had to cut, summed over its calls.
        head_parameters: names of the base parameters that train with every method and are saved with the adapter.
        head: the pattern "head" if there are such, else None.
    """

    name: str
    scores: tuple[str, ...]                 # metrics that may select, the default first
    defaults: ClassVar[dict[str, Any]]      # limits

    def __init__(self, backbone: Backbone, labels: Sequence[str] | None = None, **limits: Any) -> None:
        check_task(self.name, labels)
        known = {"metric": self.scores[0], **self.defaults}
        for limit in limits:
            if limit not in known:
                raise NoSuchSetting(f"{self.name} has no limit {limit!r}.{nearest(limit, known)}")
        self.backbone = backbone
        self.labels = None if labels is None else list(labels)
        self.limits: dict[str, Any] = {**known, **limits}
        self.metric: str = self.limits["metric"]
        if self.metric not in self.scores:
            raise NoSuchSetting(f"{self.name} cannot select by metric {self.metric!r}.{nearest(self.metric, self.scores)}")
        self.truncated = 0
        self.head_parameters = find_head(backbone) if self.has_head else []
        self.head = "head" if self.head_parameters else None

    has_head: ClassVar[bool] = True
    wanders: ClassVar[bool] = False  # whether what the model sees next depends on its answers, so that nothing of it can be kept
    answers_untrained: ClassVar[bool] = False  # whether the model's answers mean something before anything has trained

    @abstractmethod
    def encode(self, table: Table) -> list[dict[str, Any]]:
        """Rows as examples; what the task answers may be absent, then ``collate`` gives no labels."""

    @abstractmethod
    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """Examples as one batch, which the model takes as ``model(**batch)`` (without ``labels`` if it is no HF model)."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """The mean loss over the items of a batch, and how many they are."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """One plain-JSON answer per example: ``prediction``, and ``scores`` (probabilities, or None)."""

    @abstractmethod
    def statistics(self, predictions: Sequence[Prediction], table: Table) -> dict[str, Statistic]:
        """Metric name -> the metric as a function of resampled items, for predictions of the rows of ``table``."""

    @abstractmethod
    def majority(self, train_table: Table, table: Table) -> list[Prediction]:
        """The predictions of a model that never looks at its input."""

    def fit(self, table: Table) -> None:
        """Learn from the training split what the task must know before training (the scale of a regression); mostly nothing."""
        return

    @property
    def varies(self) -> bool:
        """Whether ``vary`` changes anything."""
        return False

    def vary(self, examples: Sequence[dict[str, Any]], seed: int, step: int, view: int = 0) -> list[dict[str, Any]]:
        """Training examples as one step sees them, a pure function of its seed, its number and the view; mostly as they are."""
        return list(examples)

    def judge(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Predictions that are enough to compute ``metric``, and cheap where ``predict`` is slow."""
        return self.predict(model, batch)

    def turn(self, model: nn.Module, batch: Batch) -> tuple[Task, Batch]:
        """The task that a batch belongs to, and the batch as that task takes it. Of several the model is told which."""
        return self, batch

    def resamples(self, n: int, table: Table, seed: int = 0) -> Iterator[Counts]:
        """How often each of the n rows is drawn [R, n], in the resamples that intervals and comparisons are made of."""
        return resample(n, seed, groups=self.groups(table))

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """One vector per example [B, D] from the frozen backbone, for a linear head.

        Raises: Unfit for a task whose answer is no single class or number.
        """
        raise Unfit(f"{self.name} has no single answer per example, so no linear head can be fitted to one vector of it.")

    def metrics(self, predictions: Sequence[Prediction], table: Table) -> dict[str, float]:
        """Every metric, over all rows."""
        found = self.statistics(predictions, self._checked(predictions, table))
        return {name: float(statistic(np.ones((1, len(predictions))))[0]) for name, statistic in found.items()}

    def interval(self, predictions: Sequence[Prediction], table: Table, seed: int = 0) -> dict[str, tuple[float, float]]:
        """The 95 % interval of every metric that has one: percentile bootstrap over rows, or over `groups` of them.

        The calibration error has none: its bins are noisier in a resample than in the sample, so that every resample is worse
        calibrated and the interval need not hold the value itself.
        """
        found = self.statistics(predictions, self._checked(predictions, table))
        groups = self.groups(table)
        return {name: bootstrap(statistic, len(predictions), seed, groups=groups) for name, statistic in found.items()
                if name != "expected_calibration_error"}

    def compare(self, a: Sequence[Prediction], b: Sequence[Prediction], table: Table, metric: str | None = None,
                seed: int = 0) -> Comparison:
        """Paired bootstrap of two sets of predictions for the same rows, by ``metric`` (higher must be better).

        Raises: NoSuchSetting for a metric that one of them does not have.
        """
        wanted = metric or self.metric
        sides = [self.statistics(side, self._checked(side, table)) for side in (a, b)]
        if any(wanted not in side for side in sides):
            raise NoSuchSetting(f"these predictions have no {wanted!r}.{nearest(wanted, set(sides[0]) & set(sides[1]))}")
        return compare(sides[0][wanted], sides[1][wanted], len(a), draws=self.resamples(len(a), table, seed))

    def groups(self, table: Table) -> Any:
        """Numbers [n] of what rows belong together and are drawn together, or None where every row stands alone."""
        return None

    def inputs(self, model: nn.Module, batch: Batch) -> Batch:
        """The part of a batch that is the model's input."""
        return {key: value for key, value in batch.items() if key != "labels" and not key.startswith(VIEW)}

    def view(self, batch: Batch) -> Batch | None:
        """The model's input in another view of the same rows, such as another augmentation, if the batch holds one."""
        return {key.removeprefix(VIEW): value for key, value in batch.items() if key.startswith(VIEW)} or None

    def _checked(self, predictions: Sequence[Prediction], table: Table) -> Table:
        rows = {role: len(column) for role, column in table.items()}
        if not predictions or any(size != len(predictions) for size in rows.values()):
            raise BadData(f"{len(predictions)} predictions do not pair with the rows: {rows}.")
        return table


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returned: a tensor, an output with ``logits``, or a tuple that begins with them."""
    if isinstance(output, Tensor):
        return output
    found = output["logits"] if isinstance(output, Mapping) else output[0]
    return found if isinstance(found, Tensor) else found[0]


def find_head(backbone: Backbone) -> list[str]:
    """Base parameters outside the trunk, and those that no checkpoint filled, in the model's order; tied ones by all names."""
    new = set(backbone.source.get("new_tensors", ()))
    trunk = getattr(backbone.model, "base_model_prefix", "")
    inside = trunk and hasattr(backbone.model, trunk)
    head = {id(p) for path, p in backbone.model.named_parameters()
            if path in new or (inside and not path.startswith(trunk + "."))}
    return [path for path, p in backbone.model.named_parameters(remove_duplicate=False) if id(p) in head]


def accepts(model: nn.Module) -> list[str]:
    """Names of the arguments of a model's forward pass, in order."""
    return list(inspect.signature(model.forward).parameters)


@contextmanager
def predicting(model: nn.Module) -> Iterator[None]:
    """No gradients and no dropout; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode

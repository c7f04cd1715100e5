"""What a run has to beat: the answer that never looks, and a linear head on what the frozen model sees."""
from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from thrifty.core.errors import Unfit
from thrifty.evaluate import linear_head, ridge_head
from thrifty.tasks import Task
from thrifty.train.precision import Precision
from thrifty.train.predicting import answer
from thrifty.train.processes import Processes
from thrifty.train.training import Material

MAJORITY = {"several": "answers that never look at the input",
            "regression": "the mean of the training targets", "token-classification": "the most frequent tag",
            "multiple-choice": "the place that is right most often", "navigation": "staying at the start"}
TITLES = {"linear": "frozen features with a linear head", "untrained": "the same model before training",
          "zero-shot": "the same model without demonstrations"}
Answers = list[dict[str, Any]]


class Features:
    """What the frozen model sees in the training and validation rows. Taken before the test split is read."""

    def __init__(self, task: Task, model: nn.Module, material: Material, batch: int, processes: Processes,
                 precision: Precision) -> None:
        self.task, self.model, self.batch, self.processes, self.precision = task, model, batch, processes, precision
        self.train, self.validation = self.see(material.train), self.see(material.validation)
        self.targets = [[example["label"] for example in part] for part in (material.train, material.validation)]

    def see(self, examples: list[dict[str, Any]]) -> Any:
        """[n, D] of the frozen model."""

        def look(model: nn.Module, batch: Any) -> list[Any]:
            return list(self.task.features(model, batch).float().cpu().numpy())

        return np.stack(answer(look, self.task, self.model, examples, self.batch, self.processes, self.precision))

    def predict(self, test: Any) -> Answers:
        """What a linear head, fitted to the training rows and tuned on the validation rows, says of ``test`` [n, D]."""
        (y, held), classes = self.targets, self.task.labels
        if classes is None:
            said = ridge_head(self.train, y, self.validation, held, test).predicted
            return [{"prediction": float(value), "scores": None} for value in said]
        rows = linear_head(self.train, y, self.validation, held, test, classes=len(classes)).probabilities
        return [{"prediction": int(row.argmax()), "scores": row.tolist()} for row in rows]


def take_features(task: Task, model: nn.Module, material: Material, batch: int, processes: Processes,
                  precision: Precision) -> Features | None:
    """The features of training and validation rows, or None where one vector per row is not enough for the task."""
    try:
        return Features(task, model, material, batch, processes, precision)
    except Unfit:
        return None


def title(name: str, task: str) -> str:
    """A baseline in words that fit into "better than ...": """
    return MAJORITY.get(task, "the majority class") if name == "majority" else TITLES[name]

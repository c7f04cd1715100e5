"""What all tasks with one class per example share: cross-entropy, probabilities, metrics, class frequencies."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.core.errors import BadData
from thrifty.evaluate.calibration import expected_calibration_error
from thrifty.evaluate.classification import accuracy, brier, macro_f1, matthews, negative_log_likelihood
from thrifty.evaluate.weighing import Counts, Statistic
from thrifty.tasks.task import Batch, Prediction, Table, Task, logits_of, predicting

SCORES = ("accuracy", "macro_f1", "matthews")


class Classification(Task):
    """One of C classes per example, from logits [B, C]."""

    scores = SCORES

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Cross-entropy."""
        logits = logits_of(model(**self.inputs(model, batch)))
        return nn.functional.cross_entropy(logits.float(), batch["labels"]), len(batch["labels"])

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """``prediction`` is a class number, ``scores`` the probability of each class."""
        with predicting(model):
            rows = logits_of(model(**self.inputs(model, batch))).double().softmax(dim=-1).tolist()
        return [{"prediction": int(np.argmax(row)), "scores": row} for row in rows]

    def statistics(self, predictions: Sequence[Prediction], table: Table) -> dict[str, Statistic]:
        """Accuracy, macro F1, Matthews; and with probabilities their likelihood, Brier score and calibration error."""
        return class_statistics(predictions, self.targets(table))

    def targets(self, table: Table) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Class numbers of the rows."""
        return check_classes(table, self.name, len(self.labels or ()))

    def majority(self, train_table: Table, table: Table) -> list[Prediction]:
        """The most frequent class, and the classes' shares of the training rows as probabilities."""
        return predict_shares(self.targets(train_table), len(self.labels or ()), rows_of(table))


def class_statistics(predictions: Sequence[Prediction], target: Any) -> dict[str, Statistic]:
    """Metric -> function of counts, for class numbers ``target`` [n]."""
    guessed = np.array([row["prediction"] for row in predictions], dtype=np.int64)

    def of(function: Any, answers: Any) -> Statistic:
        def statistic(counts: Counts) -> Any:
            return function(target, answers, counts)
        return statistic

    found = {"accuracy": of(accuracy, guessed), "macro_f1": of(macro_f1, guessed), "matthews": of(matthews, guessed)}
    if all(row.get("scores") is not None for row in predictions):
        rows = np.array([row["scores"] for row in predictions], dtype=np.float64)
        found |= {"negative_log_likelihood": of(negative_log_likelihood, rows), "brier": of(brier, rows),
                  "expected_calibration_error": of(expected_calibration_error, rows)}
    return found


def check_classes(table: Table, task: str, classes: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The column ``label`` as class numbers.

    Raises: BadData for a label that is no number below ``classes``, with its row.
    """
    if "label" not in table:
        raise BadData(f"{task} needs a column 'label'; the table has {', '.join(map(repr, table))}.")
    for row, label in enumerate(table["label"]):
        if isinstance(label, bool) or not isinstance(label, (int, np.integer)) or not 0 <= label < classes:
            raise BadData(f"row {row}: label {label!r} is no class number from 0 to {classes - 1}.")
    return np.array(table["label"], dtype=np.int64)


def predict_shares(target: Any, classes: int, n: int) -> list[Prediction]:
    """n times the most frequent class, with the shares of all."""
    shares = np.bincount(target, minlength=classes) / len(target)
    return [{"prediction": int(shares.argmax()), "scores": shares.tolist()} for _ in range(n)]


def rows_of(table: Table) -> int:
    """The number of rows."""
    return len(next(iter(table.values())))


def labelled(examples: list[dict[str, Any]], table: Table, targets: Callable[[Table], Any]) -> list[dict[str, Any]]:
    """The examples, each with its row's ``label`` if the table has labels."""
    if "label" in table:
        for example, label in zip(examples, targets(table).tolist(), strict=True):
            example["label"] = label
    return examples


def label_tensor(examples: Sequence[dict[str, Any]], dtype: torch.dtype = torch.long) -> Batch:
    """{"labels": [B]} if the examples have labels, else nothing."""
    if "label" not in examples[0]:
        return {}
    return {"labels": torch.tensor([example["label"] for example in examples], dtype=dtype)}

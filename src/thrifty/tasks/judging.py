"""How answers of a language model are judged once they were read: as classes, numbers, choices, or texts.

A text that names no class or choice is the answer -1, which is wrong by every metric.
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from thrifty.core.errors import BadData
from thrifty.evaluate import squad
from thrifty.evaluate.answers import binary_f1, group_match, macro_f1, named, number_groups
from thrifty.evaluate.classification import accuracy, matthews
from thrifty.evaluate.regression import mae, mse, pearson, spearman
from thrifty.evaluate.weighing import Array, Counts, Statistic, mean
from thrifty.tasks.classes import check_classes, class_statistics, predict_shares, rows_of
from thrifty.tasks.encoding import column
from thrifty.tasks.generation import Generation
from thrifty.tasks.task import Prediction, Table

Predictions = Sequence[Prediction]
LIKELIHOODS = ("negative_log_likelihood", "brier", "expected_calibration_error")


class Judging(ABC):
    """The metrics of one kind of answer, and the answer that never looks."""

    @abstractmethod
    def targets(self, table: Table) -> Any:
        """What is right, as the metrics take it."""

    @abstractmethod
    def statistics(self, predictions: Predictions, table: Table) -> dict[str, Statistic]:
        """Metric -> function of counts."""

    @abstractmethod
    def majority(self, train: Table, table: Table) -> list[Prediction]:
        """What is most often right, every time."""


class ByClass(Judging):
    """Classes; two of them have an F1, and rows that hang together are also right or wrong as a whole (``exact_match``)."""

    def __init__(self, name: str, labels: Sequence[str]) -> None:
        self.name, self.classes = name, len(labels)

    def targets(self, table: Table) -> Any:
        """Class numbers."""
        return check_classes(table, self.name, self.classes)

    def statistics(self, predictions: Predictions, table: Table) -> dict[str, Statistic]:
        """Accuracy, macro F1, Matthews, F1 of class 1, exact match of groups; likelihoods, or the share that names a class."""
        target = self.targets(table)
        said = np.array([row["prediction"] for row in predictions], dtype=np.int64)
        extra = np.where(said < 0, self.classes, said)
        found: dict[str, Statistic] = {
            "accuracy": lambda counts: np.asarray(accuracy(target, extra, counts)),
            "macro_f1": lambda counts: np.asarray(macro_f1(target, said, self.classes, counts)),
            "matthews": lambda counts: np.asarray(matthews(target, extra, counts))}
        if self.classes == 2:
            found["f1"] = lambda counts: np.asarray(binary_f1(target, said, counts))
        if "group" in table:
            groups = number_groups(table["group"])
            found["exact_match"] = lambda counts: np.asarray(group_match(said == target, groups, counts))
        return found | certainty(predictions, target, said)

    def majority(self, train: Table, table: Table) -> list[Prediction]:
        """The most frequent class, and the classes' shares."""
        return predict_shares(self.targets(train), self.classes, rows_of(table))


class ByNumber(Judging):
    """Numbers."""

    def targets(self, table: Table) -> Array:
        """The labels."""
        return np.array(column(table, "label", "regression"), dtype=np.float64)

    def statistics(self, predictions: Predictions, table: Table) -> dict[str, Statistic]:
        """Pearson, Spearman, both errors, and both negated."""
        target = self.targets(table)
        said = np.array([row["prediction"] for row in predictions], dtype=np.float64)

        def of(function: Any, sign: float = 1.0) -> Statistic:
            return lambda counts: np.asarray(sign * function(target, said, counts))

        return {"pearson": of(pearson), "spearman": of(spearman), "mse": of(mse), "mae": of(mae), "negative_mse": of(mse, -1.0),
                "negative_mae": of(mae, -1.0)}

    def majority(self, train: Table, table: Table) -> list[Prediction]:
        """The mean of the training labels."""
        return [{"prediction": float(self.targets(train).mean()), "scores": None} for _ in range(rows_of(table))]


class ByChoice(Judging):
    """Numbers of each row's own choices."""

    def targets(self, table: Table) -> Any:
        """The numbers of the right choices.

        Raises: BadData for a label that is no number of a choice, with its row.
        """
        for row, (label, choices) in enumerate(zip(table["label"], table["choices"], strict=True)):
            if not isinstance(label, int) or not 0 <= label < len(choices):
                raise BadData(f"row {row}: label {label!r} is no number of its {len(choices)} choices.")
        return np.array(table["label"], dtype=np.int64)

    def statistics(self, predictions: Predictions, table: Table) -> dict[str, Statistic]:
        """Accuracy, the share that names a choice; likelihoods if ranked."""
        target, widest = self.targets(table), max(map(len, table["choices"]))
        said = np.array([row["prediction"] for row in predictions], dtype=np.int64)
        padded = [{**row, "scores": [*row["scores"], *[0.0] * (widest - len(row["scores"]))]} if row.get("scores") else row
                  for row in predictions]
        return {"accuracy": lambda counts: np.asarray(mean(said == target, counts)), **certainty(padded, target, said)}

    def majority(self, train: Table, table: Table) -> list[Prediction]:
        """The place that is right most often, among the places that a row has."""
        counts = np.bincount(self.targets(train), minlength=max(map(len, table["choices"]))) + 1e-9
        shares = [counts[:len(row)] / counts[:len(row)].sum() for row in table["choices"]]
        return [{"prediction": int(row.argmax()), "scores": row.tolist()} for row in shares]


class ByAnswer(Judging):
    """Texts, by SQuAD's measures; of rows about one thing only the first counts."""

    def targets(self, table: Table) -> list[list[str]]:
        """All right texts of each row."""
        return [list(accepted) for accepted in column(table, "references", "an answer")]

    def statistics(self, predictions: Predictions, table: Table) -> dict[str, Statistic]:
        """F1 over words and exact match."""
        texts, accepted = [row["prediction"] for row in predictions], self.targets(table)
        groups = number_groups(table["group"]) if "group" in table else np.arange(len(texts))
        first = np.unique(groups, return_index=True)[1]

        def of(measure: Any) -> Statistic:
            scored = [measure(texts[i], accepted[i]) for i in first]

            def statistic(counts: Counts) -> Array:
                return np.asarray(mean(scored, counts[:, first]))
            return statistic

        return {"f1": of(squad.overlap), "exact_match": of(squad.exact)}

    def majority(self, train: Table, table: Table) -> list[Prediction]:
        """The most frequent answer."""
        texts = column(train, "target", "an answer")
        return [{"prediction": max(sorted(set(texts)), key=texts.count), "scores": None} for _ in range(rows_of(table))]


class ByText(Judging):
    """Texts, as the task of writing them judges."""

    def __init__(self, writer: Generation) -> None:
        self.writer = writer

    def targets(self, table: Table) -> list[list[str]]:
        """The acceptable texts."""
        return self.writer.references(table)

    def statistics(self, predictions: Predictions, table: Table) -> dict[str, Statistic]:
        """Loss and perplexity, BLEU, chrF and exact match."""
        return self.writer.statistics(predictions, table)

    def majority(self, train: Table, table: Table) -> list[Prediction]:
        """The most frequent target."""
        return self.writer.majority(train, table)


def certainty(predictions: Predictions, target: Any, said: Any) -> dict[str, Statistic]:
    """How sure ranked answers were, or what share of written ones can be read."""
    if all(row.get("scores") is not None for row in predictions):
        found = class_statistics(predictions, target)
        return {name: found[name] for name in LIKELIHOODS}
    return {"valid_share": lambda counts: np.asarray(named(said, counts))}

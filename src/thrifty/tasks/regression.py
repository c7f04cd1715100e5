"""One number for a text or a pair of texts."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.evaluate.regression import mae, mse, pearson, spearman
from thrifty.evaluate.weighing import Array, Counts, Statistic
from thrifty.models.backbone import Backbone
from thrifty.tasks.classes import label_tensor, rows_of
from thrifty.tasks.encoding import column
from thrifty.tasks.task import Batch, Prediction, Table, logits_of, predicting
from thrifty.tasks.texts import OneText


class Regression(OneText):
    """Roles: ``text``, optionally ``text_pair``, and ``label`` (numbers).

    Limits: ``max_length`` (tokens), ``metric``, and ``centre`` and ``scale``: the model learns (label - centre) / scale. `fit`
    sets them to the mean and standard deviation of the training labels, so that labels in the thousands train as well as
    labels near 1.
    """

    name = "regression"
    scores = ("pearson", "spearman", "negative_mse", "negative_mae")
    defaults = {**OneText.defaults, "centre": None, "scale": None}

    def __init__(self, backbone: Backbone, labels: Sequence[str] | None = None, **limits: Any) -> None:
        super().__init__(backbone, labels, **limits)
        for limit in ("centre", "scale"):
            value = self.limits[limit]
            if value is not None and (not _is_number(value) or (limit == "scale" and value <= 0)):
                raise NoSuchSetting(f"{limit}={value!r} must be a finite number{' above 0' if limit == 'scale' else ''}.")

    def fit(self, table: Table) -> None:
        """Take ``centre`` and ``scale`` from the training labels, unless they were given."""
        target = self.targets(table)
        if self.limits["centre"] is None:
            self.limits["centre"] = float(target.mean())
        if self.limits["scale"] is None:
            self.limits["scale"] = float(target.std()) or 1.0

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """input_ids, attention_mask and, where the model has segments, token_type_ids [B, T]; scaled labels [B]."""
        centre, scale = self._scaling()
        scaled = [{**example, "label": (example["label"] - centre) / scale} if "label" in example else example
                  for example in examples]
        return {**self.encoder.pad(examples), **label_tensor(scaled, torch.float32)}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Mean squared error of the scaled labels."""
        found = logits_of(model(**self.inputs(model, batch))).float().squeeze(-1)
        return nn.functional.mse_loss(found, batch["labels"].float()), len(found)

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """``prediction`` is a number in units of the labels."""
        centre, scale = self._scaling()
        with predicting(model):
            found = logits_of(model(**self.inputs(model, batch))).double().squeeze(-1).tolist()
        return [{"prediction": value * scale + centre, "scores": None} for value in found]

    def statistics(self, predictions: Sequence[Prediction], table: Table) -> dict[str, Statistic]:
        """Pearson, Spearman, squared and absolute error, and both errors negated, which can select."""
        target = self.targets(table)
        guessed = np.array([row["prediction"] for row in predictions], dtype=np.float64)

        def of(function: Any, sign: float = 1.0) -> Statistic:
            def statistic(counts: Counts) -> Array:
                return np.asarray(sign * function(target, guessed, counts))
            return statistic

        return {"pearson": of(pearson), "spearman": of(spearman), "mse": of(mse), "mae": of(mae),
                "negative_mse": of(mse, -1.0), "negative_mae": of(mae, -1.0)}

    def majority(self, train_table: Table, table: Table) -> list[Prediction]:
        """The mean of the training labels, every time."""
        centre = float(self.targets(train_table).mean())
        return [{"prediction": centre, "scores": None} for _ in range(rows_of(table))]

    def targets(self, table: Table) -> Array:
        """The labels.

        Raises: BadData for a label that is no finite number, with its row.
        """
        for row, label in enumerate(column(table, "label", self.name)):
            if not _is_number(label):
                raise BadData(f"row {row}: label {label!r} is no finite number.")
        return np.array(table["label"], dtype=np.float64)

    def _scaling(self) -> tuple[float, float]:
        centre, scale = self.limits["centre"], self.limits["scale"]
        return (0.0 if centre is None else centre), (1.0 if scale is None else scale)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)

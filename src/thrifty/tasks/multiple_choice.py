"""Which of a few answers fits a text."""
from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.core.errors import BadData
from thrifty.evaluate.weighing import Statistic
from thrifty.tasks.classes import class_statistics, label_tensor, labelled
from thrifty.tasks.encoding import column, pad_right, round_up
from thrifty.tasks.task import Batch, Prediction, Table, logits_of, predicting
from thrifty.tasks.texts import TextTask


class MultipleChoice(TextTask):
    """Roles: ``choices`` (lists of texts), optionally ``text``, and ``label`` (the number of the right one).

    Limits: ``max_length`` (tokens of a text with one choice), ``metric``. Rows may have different numbers of choices.
    """

    name = "multiple-choice"
    scores = ("accuracy",)

    def encode(self, table: Table) -> list[dict[str, Any]]:
        """``choices``: the token numbers of the text with each choice; and ``label``."""
        choices = self._choices(table)
        flat = [choice for row in choices for choice in row]
        texts = [text for text, row in zip(table["text"], choices, strict=True) for _ in row] if "text" in table else None
        encoded, cut = self.encoder.encode(flat) if texts is None else self.encoder.encode(texts, flat)
        ends = list(accumulate(map(len, choices)))
        self.truncated += len({bisect_right(ends, place) for place in cut})
        examples: list[dict[str, Any]] = [{"choices": encoded[end - len(row):end]}
                                          for end, row in zip(ends, choices, strict=True)]
        return labelled(examples, table, self.targets)

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """input_ids, attention_mask, token_type_ids where the model has segments [B, C, T]; labels [B].

        A row with fewer choices than others is filled with empty ones: one padding token, attended to, as a row
        without any token to attend to would have no finite attention.
        """
        most = max(len(example["choices"]) for example in examples)
        empty = {"input_ids": [self.encoder.pad_id], "token_type_ids": [0]}
        flat = [choice for example in examples
                for choice in (*example["choices"], *[empty] * (most - len(example["choices"])))]
        width = round_up(max(len(choice["input_ids"]) for choice in flat), self.encoder.limit)
        fills = {"input_ids": self.encoder.pad_id, "token_type_ids": 0}
        batch = {key: pad_right([choice[key] for choice in flat], fill, width)
                 for key, fill in fills.items() if key in self.encoder.keys}
        batch["attention_mask"] = pad_right([[1] * len(choice["input_ids"]) for choice in flat], 0, width)
        return {**{key: value.view(len(examples), most, width) for key, value in batch.items()}, **label_tensor(examples)}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Cross-entropy over the choices of each row."""
        return nn.functional.cross_entropy(self._logits(model, batch), batch["labels"]), len(batch["labels"])

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """``prediction`` is the number of a choice, ``scores`` the probability of each."""
        with predicting(model):
            logits = self._logits(model, batch)
        rows = [row[row > -torch.inf].double().softmax(dim=-1).tolist() for row in logits]
        return [{"prediction": int(np.argmax(row)), "scores": row} for row in rows]

    def statistics(self, predictions: Sequence[Prediction], table: Table) -> dict[str, Statistic]:
        """Accuracy; and with probabilities their likelihood, Brier score and calibration error."""
        widest = max(map(len, self._choices(table)))
        padded = [{**row, "scores": [*row["scores"], *[0.0] * (widest - len(row["scores"]))]} if row.get("scores") else row
                  for row in predictions]
        found = class_statistics(padded, self.targets(table))
        return {name: statistic for name, statistic in found.items() if name not in ("macro_f1", "matthews")}

    def majority(self, train_table: Table, table: Table) -> list[Prediction]:
        """The place that is right most often, among the places that a row has."""
        shares = np.bincount(self.targets(train_table), minlength=max(map(len, self._choices(table)))) + 1e-9
        rows = [shares[:len(row)] / shares[:len(row)].sum() for row in self._choices(table)]
        return [{"prediction": int(row.argmax()), "scores": row.tolist()} for row in rows]

    def targets(self, table: Table) -> Any:
        """The numbers of the right choices [n].

        Raises: BadData for a label that is no number of a choice, with its row.
        """
        for row, (label, choices) in enumerate(zip(column(table, "label", self.name), self._choices(table), strict=True)):
            if isinstance(label, bool) or not isinstance(label, (int, np.integer)) or not 0 <= label < len(choices):
                raise BadData(f"row {row}: label {label!r} is no number of its {len(choices)} choices.")
        return np.array(table["label"], dtype=np.int64)

    def _choices(self, table: Table) -> Sequence[Sequence[str]]:
        found: Sequence[Sequence[str]] = column(table, "choices", self.name)
        for row, choices in enumerate(found):
            if isinstance(choices, str) or len(choices) < 2:
                raise BadData(f"row {row}: choices must be a list of at least two texts, not {choices!r}.")
        return found

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """[B, C], minus infinity where a choice is only filling: no text begins with the padding token."""
        logits = logits_of(model(**self.inputs(model, batch))).float()
        return logits.masked_fill(batch["input_ids"][..., 0] == self.encoder.pad_id, -torch.inf)

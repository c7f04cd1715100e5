"""What both kinds of generation share: limits, the likelihood of the targets, and the metrics of written text."""
from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.evaluate.cider import cider_statistic
from thrifty.evaluate.texts import bleu_statistic, chrf_statistic, exact_match, need_sacrebleu
from thrifty.evaluate.weighing import Array, Counts, Statistic, ratio
from thrifty.models.backbone import Backbone
from thrifty.tasks.classes import rows_of
from thrifty.tasks.encoding import IGNORED, check_length, column
from thrifty.tasks.task import Batch, Prediction, Table, predicting
from thrifty.tasks.texts import TextTask


class Generation(TextTask):
    """Roles: ``source``, ``target``, and optionally ``references`` (lists of acceptable texts; else the target is the one).

    Selection is by ``negative_loss``, minus the mean loss per target token; `judge` computes it without writing any text.
    """

    scores = ("negative_loss", "bleu", "chrf", "cider", "exact_match")
    has_head = False
    answers_untrained = True
    measured: ClassVar[bool] = True  # whether what is written is compared with references

    def __init__(self, backbone: Backbone, labels: Sequence[str] | None = None, **limits: Any) -> None:
        super().__init__(backbone, labels, **limits)
        if self.measured:
            need_sacrebleu()  # now, not after hours of training
        if self.limits["max_new_tokens"] is None:
            self.limits["max_new_tokens"] = self.encoder.max_length // 2
        check_length(self.limits["max_new_tokens"], self.encoder.limit, "max_new_tokens")
        if self.encoder.tokenizer.eos_token_id is None:
            raise NoSuchSetting(f"{self.name} needs a tokenizer with an end token, or the model could never learn to stop.")

    @abstractmethod
    def join(self, prompt: dict[str, Any], target: list[int]) -> dict[str, Any]:
        """An example of an encoded prompt and the token numbers of a target."""

    @abstractmethod
    def part(self, example: dict[str, Any]) -> dict[str, Any]:
        """The prompt of an example, with or without a target."""

    @abstractmethod
    def token_losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss of each target token, 0 elsewhere, and which tokens are targets; both [B, T]."""

    @abstractmethod
    def write(self, model: nn.Module, batch: Batch) -> Tensor:
        """The token numbers that the model continues with [B, T], greedily."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Cross-entropy over the target tokens of the batch."""
        losses, wanted = self.token_losses(model, batch)
        count = int(wanted.sum())
        if count == 0:
            raise BadData("a batch without target tokens has no loss; do these rows have a column 'target'?")
        return losses.sum() / count, count

    def judge(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """``loss`` summed over the target's ``tokens``; with another metric than ``negative_loss`` the text as well."""
        return self._measure(model, batch) if self.metric == "negative_loss" else self.predict(model, batch)

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """``prediction`` is the text written greedily; with targets also ``loss`` summed over its ``tokens``."""
        with predicting(model):
            texts = self.encoder.tokenizer.batch_decode(self.write(model, batch), skip_special_tokens=True)
        known: list[Prediction] = self._measure(model, batch) if "labels" in batch else [{} for _ in texts]
        return [{"prediction": text.strip(), "scores": None, **row} for text, row in zip(texts, known, strict=True)]

    def statistics(self, predictions: Sequence[Prediction], table: Table) -> dict[str, Statistic]:
        """Loss and perplexity per token where the targets were measured; BLEU, chrF, CIDEr, exact match where text was written."""
        found: dict[str, Statistic] = {}
        if all("loss" in row for row in predictions):
            sums, tokens = ([row[key] for row in predictions] for key in ("loss", "tokens"))

            def loss(counts: Counts) -> Array:
                return np.asarray(ratio(sums, tokens, counts))

            found |= {"negative_loss": lambda counts: -loss(counts), "loss": loss,
                      "perplexity": lambda counts: np.exp(np.minimum(loss(counts), 700.0))}
        if all("prediction" in row for row in predictions):
            texts, accepted = [row["prediction"] for row in predictions], self.references(table)
            found |= {"bleu": bleu_statistic(texts, accepted), "chrf": chrf_statistic(texts, accepted),
                      "cider": cider_statistic(texts, accepted),
                      "exact_match": lambda counts: np.asarray(exact_match(texts, accepted, counts))}
        return found

    def references(self, table: Table) -> list[list[str]]:
        """The acceptable texts of each row.

        Raises: BadData for a row without one.
        """
        if "references" not in table:
            return [[text] for text in column(table, "target", self.name)]
        for row, accepted in enumerate(table["references"]):
            if isinstance(accepted, str) or not accepted:
                raise BadData(f"row {row}: references must be a list of at least one text, not {accepted!r}.")
        return [list(accepted) for accepted in table["references"]]

    def majority(self, train_table: Table, table: Table) -> list[Prediction]:
        """The most frequent target of the training rows, every time."""
        text = Counter(column(train_table, "target", self.name)).most_common(1)[0][0]
        return [{"prediction": text, "scores": None} for _ in range(rows_of(table))]

    def encode_target(self, text: str) -> tuple[list[int], bool]:
        """Token numbers of a target and the end token, and whether it was cut; a cut one has no end."""
        tokenizer, most = self.encoder.tokenizer, int(self.limits["max_new_tokens"])
        ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return ([*ids, tokenizer.eos_token_id], False) if len(ids) < most else (ids[:most], len(ids) > most)

    def settings(self) -> dict[str, Any]:
        """What `generate` is told: greedy, and when to stop."""
        tokenizer = self.encoder.tokenizer
        return {"do_sample": False, "num_beams": 1, "max_new_tokens": self.limits["max_new_tokens"],
                "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}

    def _measure(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        with predicting(model):
            losses, wanted = self.token_losses(model, batch)
        rows = zip(losses.double().sum(dim=1).tolist(), wanted.sum(dim=1).tolist(), strict=True)
        found = [{"loss": loss, "tokens": tokens} for loss, tokens in rows]
        if not all(math.isfinite(row["loss"]) for row in found):
            raise BadData("the loss of a target is not finite; the model or its precision has overflowed.")
        return found


def losses_of(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of logits [B, T, V] at labels [B, T], 0 where a label is ignored, and where it is not."""
    losses = nn.functional.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return losses, labels != IGNORED


def pad_left(rows: Sequence[Tensor], fill: int) -> tuple[Tensor, Tensor]:
    """Rows of token numbers as one tensor that ends where they end [B, T], and its mask."""
    width = max(len(row) for row in rows)
    ids = torch.stack([nn.functional.pad(row, (width - len(row), 0), value=fill) for row in rows])
    mask = torch.stack([nn.functional.pad(torch.ones_like(row), (width - len(row), 0)) for row in rows])
    return ids, mask

"""One tag per token: named entities, parts of speech."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from thrifty.core.errors import BadData
from thrifty.evaluate.entities import entity_f1, is_entity_scheme
from thrifty.evaluate.weighing import Array, Counts, Statistic, ratio
from thrifty.models.backbone import Backbone
from thrifty.tasks.encoding import IGNORED, column
from thrifty.tasks.task import Batch, Prediction, Table, logits_of, predicting
from thrifty.tasks.texts import TextTask

UNKNOWN = -1  # the label of a token whose tag is not known: it is predicted, and no loss accepts it


class TokenClassification(TextTask):
    """Roles: ``tokens`` (lists of words) and ``tags`` (lists of tag numbers). Limits: ``max_length`` (pieces), ``metric``.

    A word is tagged at its first piece. Words that were cut off are predicted as "O", or as the first label if there is no "O".
    """

    name = "token-classification"
    scores: tuple[str, ...] = ("entity_f1", "token_accuracy")

    def __init__(self, backbone: Backbone, labels: Sequence[str] | None = None, **limits: Any) -> None:
        self.entities = is_entity_scheme(labels or ())
        if not self.entities:
            self.scores = ("token_accuracy",)
        super().__init__(backbone, labels, **limits)
        self.names = list(labels or ())
        self.outside = self.names.index("O") if "O" in self.names else 0

    def encode(self, table: Table) -> list[dict[str, Any]]:
        """Token numbers, and a label at the first piece of each word: its tag, or `UNKNOWN` if the table has no tags."""
        words = column(table, "tokens", self.name)
        tags = self.targets(table) if "tags" in table else [[UNKNOWN] * len(row) for row in words]
        examples, cut = self.encoder.encode_words(words)
        self.truncated += len(cut)
        for example, row in zip(examples, tags, strict=True):
            places = example.pop("words")
            example["labels"] = [IGNORED if word is None or word == before else row[word]
                                 for before, word in zip([None, *places], places, strict=False)]
        return examples

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """input_ids, attention_mask, token_type_ids where the model has segments, labels; all [B, T]."""
        return self.encoder.pad(examples, labels=IGNORED)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Cross-entropy over the tagged words of the batch."""
        logits = logits_of(model(**self.inputs(model, batch)))
        labels = batch["labels"]
        count = int((labels != IGNORED).sum())
        return nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED), count

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """``prediction`` is a list of tag numbers, one per word that was not cut off."""
        with predicting(model):
            best = logits_of(model(**self.inputs(model, batch))).argmax(dim=-1)
        return [{"prediction": row[kept].tolist(), "scores": None}
                for row, kept in zip(best, batch["labels"] != IGNORED, strict=True)]

    def statistics(self, predictions: Sequence[Prediction], table: Table) -> dict[str, Statistic]:
        """F1 over entities where the labels are an entity scheme, and the share of words with the right tag."""
        target = self.targets(table)
        guessed = [self.complete(row["prediction"], len(t), place)
                   for place, (row, t) in enumerate(zip(predictions, target, strict=True))]
        right = [sum(a == b for a, b in zip(t, p, strict=True)) for t, p in zip(target, guessed, strict=True)]

        def token_accuracy(counts: Counts) -> Array:
            return np.asarray(ratio(right, [len(t) for t in target], counts))

        if not self.entities:
            return {"token_accuracy": token_accuracy}
        named = [[[self.names[tag] for tag in tags] for tags in rows] for rows in (target, guessed)]

        def by_entity(counts: Counts) -> Array:
            return np.asarray(entity_f1(named[0], named[1], counts))

        return {"entity_f1": by_entity, "token_accuracy": token_accuracy}

    def complete(self, tags: Sequence[int], length: int, row: int = 0) -> list[int]:
        """Predicted tags with the words that were cut off filled in.

        Raises: BadData for more tags than words.
        """
        if len(tags) > length:
            raise BadData(f"row {row}: {len(tags)} predicted tags for {length} tokens.")
        return [*tags, *[self.outside] * (length - len(tags))]

    def majority(self, train_table: Table, table: Table) -> list[Prediction]:
        """The most frequent tag for every word."""
        every = [tag for tags in self.targets(train_table) for tag in tags]
        best = int(np.bincount(every, minlength=len(self.names)).argmax())
        return [{"prediction": [best] * len(row), "scores": None} for row in column(table, "tokens", self.name)]

    def targets(self, table: Table) -> list[list[int]]:
        """Tag numbers of the rows.

        Raises: BadData for a row with other tags than tokens, or a tag that is no label's number.
        """
        words, tags = column(table, "tokens", self.name), column(table, "tags", self.name)
        for row, (w, t) in enumerate(zip(words, tags, strict=True)):
            if len(w) != len(t):
                raise BadData(f"row {row}: {len(w)} tokens but {len(t)} tags.")
            for tag in t:
                if isinstance(tag, bool) or not isinstance(tag, (int, np.integer)) or not 0 <= tag < len(self.names):
                    raise BadData(f"row {row}: tag {tag!r} is no number from 0 to {len(self.names) - 1}.")
        return [[int(tag) for tag in row] for row in tags]

"""One class for a text or a pair of texts."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from thrifty.models.backbone import Backbone
from thrifty.tasks.classes import Classification, label_tensor
from thrifty.tasks.encoding import Encoder, column
from thrifty.tasks.features import text_features
from thrifty.tasks.task import Batch, Table


class TextClassification(Classification):
    """Roles: ``text``, optionally ``text_pair``, and ``label`` (class numbers). Limits: ``max_length`` (tokens), ``metric``."""

    name = "text-classification"
    defaults = {"max_length": None}

    def __init__(self, backbone: Backbone, labels: Sequence[str] | None = None, **limits: Any) -> None:
        super().__init__(backbone, labels, **limits)
        self.encoder = Encoder(backbone, self.limits["max_length"])
        self.limits["max_length"] = self.encoder.max_length

    def encode(self, table: Table) -> list[dict[str, Any]]:
        """Token numbers and the class."""
        examples, cut = self.encoder.encode(column(table, "text", self.name), table.get("text_pair"))
        self.truncated += len(cut)
        if "label" in table:
            for example, label in zip(examples, self.targets(table).tolist(), strict=True):
                example["label"] = label
        return examples

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """input_ids, attention_mask and, where the model has segments, token_type_ids [B, T]; labels [B]."""
        return {**self.encoder.pad(examples), **label_tensor(examples)}

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean of the trunk's last hidden states over the tokens [B, D]."""
        return text_features(model, self.inputs(model, batch))

"""One class for a text or a pair of texts."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from thrifty.tasks.classes import Classification, label_tensor
from thrifty.tasks.task import Batch
from thrifty.tasks.texts import OneText


class TextClassification(Classification, OneText):
    """Roles: ``text``, optionally ``text_pair``, and ``label`` (class numbers). Limits: ``max_length`` (tokens), ``metric``."""

    name = "text-classification"

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """input_ids, attention_mask and, where the model has segments, token_type_ids [B, T]; labels [B]."""
        return {**self.encoder.pad(examples), **label_tensor(examples)}

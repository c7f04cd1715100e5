"""What tasks that read texts with a tokenizer share, and those with one answer for a text or a pair of texts."""
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from thrifty.models.backbone import Backbone
from thrifty.tasks.classes import labelled
from thrifty.tasks.encoding import Encoder, column
from thrifty.tasks.features import text_features
from thrifty.tasks.task import Batch, Table, Task


class TextTask(Task):
    """A task with the limit ``max_length`` (tokens; by default 256, or as many as the model has positions for)."""

    defaults: ClassVar[dict[str, Any]] = {"max_length": None}

    def __init__(self, backbone: Backbone, labels: Sequence[str] | None = None, **limits: Any) -> None:
        super().__init__(backbone, labels, **limits)
        self.encoder = Encoder(backbone, self.limits["max_length"])
        self.limits["max_length"] = self.encoder.max_length


class OneText(TextTask):
    """Roles: ``text``, optionally ``text_pair``, and ``label``."""

    def encode(self, table: Table) -> list[dict[str, Any]]:
        """Token numbers, and the label as it is."""
        examples, cut = self.encoder.encode(column(table, "text", self.name), table.get("text_pair"))
        self.truncated += len(cut)
        return labelled(examples, table, self.targets)

    @abstractmethod
    def targets(self, table: Table) -> Any:
        """The column ``label`` as an array [n]."""

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean of the trunk's last hidden states over the tokens [B, D]."""
        return text_features(model, self.inputs(model, batch))

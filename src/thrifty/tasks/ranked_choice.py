"""Which of a few answers fits a text, for models that write: the answer that they would most likely write."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from thrifty.core.errors import NoSuchSetting
from thrifty.models.backbone import Backbone
from thrifty.tasks.causal_generation import CausalGeneration
from thrifty.tasks.classes import label_tensor, labelled
from thrifty.tasks.generation import Generation
from thrifty.tasks.multiple_choice import MultipleChoice
from thrifty.tasks.ranking import lay_out, weigh
from thrifty.tasks.seq2seq_generation import Seq2SeqGeneration
from thrifty.tasks.task import Batch, Table

MOST = 64  # tokens of a choice, where nothing else is said


class RankedChoice(MultipleChoice):
    """Choices c of a text x, ranked by beta(c) = sum over its T tokens of log p(c_t | x, c_<t) / T^length_norm.

    The loss is the cross-entropy of the right choice's tokens; a method may make more of the others. Nothing new trains: the
    model answers before it is trained, too.

    Limits: ``max_length`` (tokens of the text), ``max_new_tokens`` (of a choice with its end; by default a quarter of that, at
    most 64), ``length_norm`` (1: the mean over tokens; 0: the sum, which favours short choices), ``metric``.
    """

    defaults = {"max_length": None, "max_new_tokens": None, "length_norm": 1.0}
    has_head = False
    answers_untrained = True
    generation: ClassVar[type[Generation]]

    def __init__(self, backbone: Backbone, labels: Sequence[str] | None = None, **limits: Any) -> None:
        super().__init__(backbone, labels, **limits)
        power = self.limits["length_norm"]
        if isinstance(power, bool) or not isinstance(power, (int, float)) or not 0 <= power < float("inf"):
            raise NoSuchSetting(f"length_norm={power!r} must be a number of at least 0.")
        self.limits["max_new_tokens"] = self.limits["max_new_tokens"] or max(4, min(MOST, self.limits["max_length"] // 4))
        self.writer = self.generation(backbone, **{name: self.limits[name] for name in self.generation.defaults})

    def encode(self, table: Table) -> list[dict[str, Any]]:
        """``choices``: token numbers of the text and of each choice as its continuation; and ``label``."""
        choices = self._choices(table)
        texts = table.get("text") or [""] * len(choices)
        examples = []
        for text, row in zip(texts, choices, strict=True):
            before = self.writer.truncated
            examples.append({"choices": self.writer.encode({"source": [text] * len(row), "target": row})})
            self.truncated += self.writer.truncated > before
        return labelled(examples, table, self.targets)

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """What the model takes, one row a choice [B, C, ...]; ``targets``, the choices' tokens [B, C, T]; labels [B].

        A row with fewer choices than others is filled with its first choice again, of which no token is a target.
        """
        batch = lay_out(self.writer, [example["choices"] for example in examples])
        return {**batch, **label_tensor(examples)}

    def inputs(self, model: nn.Module, batch: Batch) -> Batch:
        """The part of a batch that is the model's input, one row a choice [B C, ...]."""
        return {key: value.flatten(0, 1) for key, value in batch.items() if key not in ("labels", "targets")}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Cross-entropy over the tokens of the right choices; no other is computed."""
        rows = torch.arange(len(batch["labels"]), device=batch["labels"].device)
        right = {key: value[rows, batch["labels"]] for key, value in batch.items() if key not in ("labels", "targets")}
        return self.writer.loss(model, {**right, "labels": batch["targets"][rows, batch["labels"]]})

    def weigh(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """-log p of every token of every choice, 0 elsewhere; which tokens those are; both [B, C, T]; and beta [B, C].

        beta is minus infinity where a choice is only filling.
        """
        held = {key: value for key, value in batch.items() if key != "labels"}
        return weigh(self.writer, model, held, float(self.limits["length_norm"]))

    def right(self, batch: Batch) -> Tensor:
        """The numbers of the right choices [B]."""
        return batch["labels"]

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.weigh(model, batch)[2]


class _Reader(Seq2SeqGeneration):
    measured = False


class _Continuer(CausalGeneration):
    measured = False


class Seq2SeqChoice(RankedChoice):
    """Choices as what a decoder writes. The encoder reads a text once, however many choices it has."""

    generation = _Reader


class CausalChoice(RankedChoice):
    """Choices as the continuation of the text. One more limit: ``separator`` (a line break) stands between the two."""

    defaults = {**RankedChoice.defaults, "separator": "\n"}
    generation = _Continuer

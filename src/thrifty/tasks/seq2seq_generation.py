"""Write a target from a source that an encoder has read."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from thrifty.tasks.encoding import IGNORED, column, pad_right, round_up
from thrifty.tasks.generation import Generation, losses_of
from thrifty.tasks.task import Batch, Table, logits_of


class Seq2SeqGeneration(Generation):
    """Limits: ``max_length`` (tokens of the source), ``max_new_tokens`` (of the target, half as many), ``metric``."""

    name = "seq2seq-generation"
    defaults = {"max_length": None, "max_new_tokens": None}

    def encode(self, table: Table) -> list[dict[str, Any]]:
        """Token numbers of the source, and of the target with its end token."""
        examples, cut = self.encoder.encode(column(table, "source", self.name))
        for row, (example, text) in enumerate(zip(examples, table.get("target", ()), strict=False)):
            target, shortened = self.encode_target(text)
            examples[row] = self.join(example, target)
            if shortened:
                cut.add(row)
        self.truncated += len(cut)
        return examples

    def join(self, prompt: dict[str, Any], target: list[int]) -> dict[str, Any]:
        """The encoder reads the prompt, the decoder writes the target."""
        return {**prompt, "labels": target}

    def part(self, example: dict[str, Any]) -> dict[str, Any]:
        """What the encoder reads."""
        return {key: value for key, value in example.items() if key != "labels"}

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """input_ids and attention_mask [B, S]; with targets labels, and decoder_input_ids, the labels shifted by one [B, T]."""
        batch = self.encoder.pad(examples)
        if "labels" in examples[0]:
            width = round_up(max(len(example["labels"]) for example in examples), self.encoder.limit)
            labels = pad_right([example["labels"] for example in examples], IGNORED, width)
            shift = cast(Any, self.backbone.model).prepare_decoder_input_ids_from_labels
            batch |= {"labels": labels, "decoder_input_ids": shift(labels=labels)}
        return batch

    def token_losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Each target token is predicted from the source and the target tokens before it."""
        return losses_of(logits_of(model(**self.inputs(model, batch))), batch["labels"])

    def write(self, model: nn.Module, batch: Batch) -> Tensor:
        """Write from the source."""
        given = {key: value for key, value in self.inputs(model, batch).items() if key != "decoder_input_ids"}
        return cast(Tensor, cast(Any, model).generate(**given, **self.settings()))

"""Continue a prompt: the target follows the source in one sequence."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.models.backbone import Backbone
from thrifty.tasks.encoding import IGNORED, column
from thrifty.tasks.generation import Generation, losses_of, pad_left
from thrifty.tasks.task import Batch, Table, logits_of


class CausalGeneration(Generation):
    """The prompt is ``source`` and ``separator``; only the target and the end token count in the loss.

    Limits: ``max_length`` (tokens of prompt and target together), ``max_new_tokens`` (of them, for the target with its end; by
    default half), ``separator`` (a line break), ``metric``. A prompt that is too long loses its beginning, as its end is
    nearest to the answer, and is cut alike in training and in prediction.
    """

    name = "causal-generation"
    defaults = {"max_length": None, "max_new_tokens": None, "separator": "\n"}

    def __init__(self, backbone: Backbone, labels: Sequence[str] | None = None, **limits: Any) -> None:
        super().__init__(backbone, labels, **limits)
        whole, new = self.limits["max_length"], self.limits["max_new_tokens"]
        if new >= whole:
            raise NoSuchSetting(f"max_new_tokens={new} leaves no room for a prompt in max_length={whole}.")
        if not isinstance(self.limits["separator"], str):
            raise NoSuchSetting(f"separator={self.limits['separator']!r} must be a text.")

    def encode(self, table: Table) -> list[dict[str, Any]]:
        """Token numbers of prompt and target, and labels that ignore the prompt."""
        examples = []
        for row, source in enumerate(column(table, "source", self.name)):
            prompt, cut = self.encode_prompt(source)
            if not prompt:
                raise BadData(f"row {row}: the source is empty, and so is the prompt.")
            if "target" not in table:
                examples.append({"input_ids": prompt})
            else:
                target, shortened = self.encode_target(table["target"][row])
                cut |= shortened
                examples.append(self.join({"input_ids": prompt}, target))
            self.truncated += cut
        return examples

    def join(self, prompt: dict[str, Any], target: list[int]) -> dict[str, Any]:
        """The target follows the prompt."""
        ids: list[int] = prompt["input_ids"]
        return {"input_ids": ids + target, "labels": [IGNORED] * len(ids) + target}

    def part(self, example: dict[str, Any]) -> dict[str, Any]:
        """What stands before the target."""
        ids, before = example["input_ids"], example["labels"].count(IGNORED) if "labels" in example else None
        return {"input_ids": ids[:before]}

    def encode_prompt(self, source: str) -> tuple[list[int], bool]:
        """Token numbers of a prompt without an end token, and whether its beginning was cut off."""
        tokenizer, room = self.encoder.tokenizer, self.limits["max_length"] - self.limits["max_new_tokens"]
        ids = list(tokenizer(source + self.limits["separator"], truncation=False, verbose=False)["input_ids"])
        if ids and ids[-1] == tokenizer.eos_token_id:
            ids.pop()
        if len(ids) <= room:
            return ids, False
        first = ids[:1] if ids[0] == tokenizer.bos_token_id else []
        return first + ids[len(ids) - room + len(first):], True

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """input_ids, attention_mask, and labels if there are targets; all [B, T], padded on the right."""
        return self.encoder.pad(examples, labels=IGNORED)

    def token_losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Each token is predicted from those before it."""
        logits = logits_of(model(**self.inputs(model, batch)))
        return losses_of(logits[:, :-1], batch["labels"][:, 1:])

    def write(self, model: nn.Module, batch: Batch) -> Tensor:
        """Continue the prompts, padded on the left so that all end together."""
        prompt = batch["attention_mask"].bool()
        if "labels" in batch:
            prompt = prompt & (batch["labels"] == IGNORED)
        ids, mask = pad_left([row[kept] for row, kept in zip(batch["input_ids"], prompt, strict=True)], self.encoder.pad_id)
        written = cast(Any, model).generate(input_ids=ids, attention_mask=mask, **self.settings())
        return cast(Tensor, written)[:, ids.shape[1]:]

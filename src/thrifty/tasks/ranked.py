"""Any task, answered by the likeliest of the listed answers; and which tasks are answered so."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from thrifty.core.errors import BadData, NoSuchSetting, Unfit, nearest
from thrifty.models.backbone import Backbone
from thrifty.tasks.ranking import lay_out, rank, shares, weigh
from thrifty.tasks.spoken import Spoken
from thrifty.tasks.task import Batch, Prediction, Table

ANSWERS = ("auto", "written", "ranked", "ranked-mean")


def answering(name: str, backbone: Backbone, labels: Sequence[str] | None = None, **limits: Any) -> Spoken:
    """The task called ``name``, answered in words as the limit ``answer`` says: "written", "ranked" by log p(answer and its end |
    text), or "ranked-mean" by its mean per token; "auto" is the way of the format.

    Raises: NoSuchSetting for an unknown way, or for ranking where answers are not listed; see also `Spoken`.
    """
    wanted = limits.get("answer", "auto")
    if wanted not in ANSWERS:
        raise NoSuchSetting(f"answer is {wanted!r}.{nearest(str(wanted), ANSWERS)}")
    spoken = Spoken(name, backbone, labels, **limits)
    listed = name == "multiple-choice" or bool(spoken.format.options({}))
    if wanted.startswith("ranked") and not listed:
        raise NoSuchSetting(f"answers to {spoken.format.name} are not listed, so they cannot be ranked: use answer='written'.")
    if wanted.startswith("ranked") or (wanted == "auto" and spoken.format.ranked and listed):
        return Ranked(name, backbone, labels, **limits)
    return spoken


class Ranked(Spoken):
    """Trains as `Spoken`, but what is likeliest among the listed answers is the answer; so every answer has a probability."""

    def __init__(self, name: str, backbone: Backbone, labels: Sequence[str] | None = None, **limits: Any) -> None:
        super().__init__(name, backbone, labels, **limits)
        self.power = float(self.limits["answer"] == "ranked-mean")  # of the number of tokens, by which likelihoods are divided

    def encode(self, table: Table) -> list[dict[str, Any]]:
        """As `Spoken`, with the token numbers of each answer.

        Raises: BadData for an answer with more tokens than ``max_new_tokens``.
        """
        examples, known = super().encode(table), dict[str, list[int]]()
        for number, example in enumerate(examples):
            for option in self.options(example["row"]):
                if option not in known:
                    known[option] = self.encode_option(option, number)
            example["options"] = [known[option] for option in self.options(example["row"])]
        return examples

    def options(self, row: Any) -> Sequence[str]:
        """The answers that a row may have."""
        return row["choices"] if self.name == "multiple-choice" else self.format.options(row)

    def encode_option(self, text: str, row: int) -> list[int]:
        """Token numbers of an answer with its end."""
        ids, cut = self.writer.encode_target(text)
        if cut or ids[-1] != self.encoder.tokenizer.eos_token_id:
            raise BadData(f"row {row}: the answer {text!r} has no room in max_new_tokens={self.limits['max_new_tokens']}: cut "
                          "answers cannot be told apart. Set it higher.")
        return ids

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """``prediction`` is the number of the likeliest answer (or that answer's number), ``scores`` the probability of each."""
        examples: list[dict[str, Any]] = cast(Any, batch["examples"])
        found: list[Prediction] = []
        every = rank(self.writer, model, [self.join(example) for example in examples], len(examples), self.power)
        for example, scores in zip(examples, every, strict=True):
            best = max(range(len(scores)), key=scores.__getitem__)
            if self.name == "regression":
                found.append({"prediction": self.format.read(self.options(example["row"])[best], example["row"]), "scores": None})
            else:
                found.append({"prediction": best, "scores": shares(scores)})
        return found

    def join(self, example: dict[str, Any]) -> list[dict[str, Any]]:
        """The prompt of an example with each of its answers."""
        return [self.writer.join(example["prompt"], option) for option in example["options"]]

    def weigh(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """As `thrifty.tasks.ranking.weigh`, for methods that learn from wrong answers too.

        Raises: Unfit where a lesson asks for something else than the answer.
        """
        examples: list[dict[str, Any]] = cast(Any, batch["examples"])
        for example in examples:
            right = self.writer.join(example["prompt"], example["options"][int(example["label"])])
            if example.get("labels") != right["labels"]:
                raise Unfit(f"some wordings of {self.format.name} tell the answer and ask for something else, where no answer is "
                            f"wrong: choose one that asks, such as {self.format.name}:0.")
        held = {key: value.to(batch["input_ids"].device)
                for key, value in lay_out(self.writer, list(map(self.join, examples))).items()}
        return weigh(self.writer, model, held, self.power)

    def right(self, batch: Batch) -> Tensor:
        """The numbers of the right answers [B]."""
        examples: list[dict[str, Any]] = cast(Any, batch["examples"])
        return torch.tensor([int(example["label"]) for example in examples], device=batch["input_ids"].device)

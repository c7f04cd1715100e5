"""Fill in hidden words: masked language modelling on plain texts, as a task of its own.

BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding (Devlin, Chang, Lee, Toutanova; NAACL 2019,
arXiv:1810.04805).
"""
from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.core.errors import BadData, NoSuchSetting, Unfit
from thrifty.evaluate.weighing import Array, Counts, Statistic, ratio
from thrifty.models.backbone import Backbone
from thrifty.tasks.encoding import IGNORED, column
from thrifty.tasks.generation import losses_of
from thrifty.tasks.task import Batch, Prediction, Table, logits_of, predicting
from thrifty.tasks.texts import TextTask


class MaskedLanguage(TextTask):
    """Role: ``text``. There is no next sentence to guess. The head that comes with the model trains with every method.

    In training other tokens are hidden each time a text is seen, so that ten epochs are what ten masked copies would be. What
    is hidden for judging is a function of the text alone, so that all models and all evaluations are asked the same.

    Limits: ``max_length`` (tokens), ``share`` of the tokens that are hidden (0.15), ``most`` of them in one text (20), ``metric``.
    """

    name = "masked-language"
    scores = ("negative_loss", "accuracy")
    defaults = {"max_length": None, "share": 0.15, "most": 20}
    answers_untrained = True

    def __init__(self, backbone: Backbone, labels: Sequence[str] | None = None, **limits: Any) -> None:
        super().__init__(backbone, labels, **limits)
        share, most = self.limits["share"], self.limits["most"]
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1:
            raise NoSuchSetting(f"share={share!r} must lie between 0 and 1.")
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise NoSuchSetting(f"most={most!r} must be a whole number of at least 1.")
        tokenizer = self.encoder.tokenizer
        if tokenizer.mask_token_id is None:
            raise NoSuchSetting(f"{self.name} needs a tokenizer with a mask token, which this model's does not have.")
        self.marks = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id} | set(tokenizer("")["input_ids"])

    def encode(self, table: Table) -> list[dict[str, Any]]:
        """Token numbers; which of them may be hidden; and with some hidden, the tokens that were there as ``labels``."""
        examples, cut = self.encoder.encode(column(table, "text", self.name))
        self.truncated += len(cut)
        for row, example in enumerate(examples):
            ids = example["input_ids"]
            example["free"] = [int(token not in self.marks) for token in ids]
            if not any(example["free"]):
                raise BadData(f"row {row}: the text {table['text'][row]!r} has no token that could be hidden.")
            drawn = torch.Generator().manual_seed(zlib.crc32(np.array(ids, dtype=np.int64).tobytes()))
            hidden, labels = self.hide(torch.tensor([ids]), torch.tensor([example["free"]]), drawn)
            example |= {"hidden": hidden[0].tolist(), "labels": labels[0].tolist()}
        return examples

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """What the model takes, with the whole texts; ``hidden``, the texts as judging shows them, ``labels`` and ``free``."""
        return self.encoder.pad(examples, hidden=self.encoder.pad_id, labels=IGNORED, free=0)

    def inputs(self, model: nn.Module, batch: Batch) -> Batch:
        """The part of a batch that is the model's input, with nothing hidden."""
        return {key: value for key, value in batch.items() if key in self.encoder.keys}

    def hide(self, ids: Tensor, free: Tensor, drawn: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Token numbers [B, T] with some hidden, and those tokens as labels; chosen among the ``free``.

        Of a text with n tokens, marks included, max(1, round(share n)) are chosen, but no more than ``most``: eight of ten
        become the mask, one becomes any token, and one stays as it is.
        """
        device, tokenizer = ids.device, self.encoder.tokenizer
        length = (ids != self.encoder.pad_id).sum(-1)
        wanted = (length * float(self.limits["share"])).round().clamp(1, self.limits["most"])
        order, fate = (torch.rand(ids.shape, generator=drawn, device=device) for _ in range(2))
        other = torch.randint(len(tokenizer), ids.shape, generator=drawn, device=device)
        rank = order.masked_fill(free == 0, 2.0).argsort(-1).argsort(-1)
        chosen = (rank < wanted[:, None]) & (free == 1)
        new = torch.where(fate < 0.8, tokenizer.mask_token_id, torch.where(fate < 0.9, other, ids))
        return torch.where(chosen, new, ids), torch.where(chosen, ids, IGNORED)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Cross-entropy over tokens that are hidden anew."""
        hidden, labels = self.hide(batch["input_ids"], batch["free"])
        losses, wanted = losses_of(logits_of(model(**{**self.inputs(model, batch), "input_ids": hidden})), labels)
        count = int(wanted.sum())
        return losses.sum() / count, count

    def judge(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """``loss`` summed over the hidden ``tokens`` of each text, and how many of them were guessed ``right``."""
        return [{key: row[key] for key in ("loss", "tokens", "right")} for row in self._measure(model, batch)]

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """What ``judge`` gives; ``input``, the text with its gaps, and ``prediction``, the text with the gaps filled."""
        found = []
        for row, hidden, labels, free in zip(self._measure(model, batch), batch["hidden"], batch["labels"], batch["free"],
                                             strict=True):
            gaps = labels != IGNORED
            shown = torch.where(gaps, self.encoder.tokenizer.mask_token_id, hidden)
            filled = torch.where(gaps, row.pop("guess").to(hidden), hidden)
            seen = gaps | (free == 1)
            said, gapped = (self.encoder.tokenizer.decode(ids[seen].tolist()) for ids in (filled, shown))
            found.append({"prediction": said, "scores": None, "input": gapped, **row})
        return found

    def statistics(self, predictions: Sequence[Prediction], table: Table) -> dict[str, Statistic]:
        """Loss and perplexity per hidden token, and the share of them that were guessed right."""
        sums, tokens, right = ([row[key] for row in predictions] for key in ("loss", "tokens", "right"))

        def loss(counts: Counts) -> Array:
            return np.asarray(ratio(sums, tokens, counts))

        return {"negative_loss": lambda counts: -loss(counts), "loss": loss,
                "perplexity": lambda counts: np.exp(np.minimum(loss(counts), 700.0)),
                "accuracy": lambda counts: np.asarray(ratio(right, tokens, counts))}

    def majority(self, train_table: Table, table: Table) -> NoReturn:
        """An answer without looking has no loss, by which this task is judged.

        Raises: Unfit.
        """
        raise Unfit(f"{self.name} has no answer that could be given without looking at the text.")

    def _measure(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        with predicting(model):
            logits = logits_of(model(**{**self.inputs(model, batch), "input_ids": batch["hidden"]}))
        losses, wanted = losses_of(logits, batch["labels"])
        guess = logits.argmax(-1)
        right = ((guess == batch["labels"]) & wanted).sum(-1).tolist()
        rows = zip(losses.double().sum(-1).tolist(), wanted.sum(-1).tolist(), right, guess.cpu(), strict=True)
        return [{"loss": loss, "tokens": tokens, "right": hits, "guess": said} for loss, tokens, hits, said in rows]

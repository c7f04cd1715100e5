"""Answers from demonstrations alone: a language model ranks the answers to a question behind examples, and nothing trains."""
from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, NoReturn, cast

import torch
from torch import Tensor, nn

from thrifty.core.errors import BadData, NoSuchSetting, Unfit
from thrifty.evaluate.answers import number_groups
from thrifty.evaluate.weighing import Statistic
from thrifty.formats.ablations import Shown
from thrifty.formats.demonstrations import Item
from thrifty.formats.layout import Layout
from thrifty.models.backbone import Backbone
from thrifty.tasks.encoding import IGNORED, check_length, position_limit
from thrifty.tasks.generation import losses_of
from thrifty.tasks.judging import ByChoice, ByClass, Judging
from thrifty.tasks.ranking import rank, shares
from thrifty.tasks.spoken import Answering, Continuing
from thrifty.tasks.task import Batch, Prediction, Table, Task, logits_of

CONTEXT = 1024      # tokens of demonstrations and question together, where the model has positions for as many
SPARE = 2           # tokens of each pair that are kept free, for the marks that begin and end a text


class Behind(Continuing):
    """Writes behind tokens that stand before every text of a batch, which the model reads only once."""

    before: Sequence[int] = ()
    held: Any = None

    def stand(self, before: Sequence[int]) -> None:
        """From now on texts stand behind these tokens."""
        self.before, self.held = before, None

    def token_losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """As if the tokens stood in every row."""
        rows, device = len(batch["input_ids"]), batch["input_ids"].device
        if not self.before:
            return super().token_losses(model, batch)
        if self.held is None:
            first = torch.tensor([list(self.before)], device=device)
            self.held = getattr(model(input_ids=first, use_cache=True), "past_key_values", None)
        read = torch.tensor(self.before, device=device).expand(rows, -1)
        mask = torch.cat([torch.ones_like(read), batch["attention_mask"]], dim=1)
        if not hasattr(self.held, "batch_repeat_interleave"):  # it keeps nothing, or in a way that cannot be given to many rows
            return super().token_losses(model, {
                "input_ids": torch.cat([read, batch["input_ids"]], dim=1), "attention_mask": mask,
                "labels": torch.cat([torch.full_like(read, IGNORED), batch["labels"]], dim=1)})
        cache = copy.deepcopy(self.held)
        cache.batch_repeat_interleave(rows)
        logits = logits_of(model(input_ids=batch["input_ids"], attention_mask=mask, past_key_values=cache, use_cache=True))
        return losses_of(logits[:, :-1], batch["labels"][:, 1:])


class InContext(Task):
    """Classification or multiple choice by log p(answer | demonstrations and question), or of the question behind each answer
    (channel); by default the mean over the tokens that are scored.

    Limits: ``max_length`` (tokens of one pair of text and answer; a longer text loses its end, an answer never does),
    ``context`` (tokens of all together: 1024 or as many as the model has positions for), ``likelihood`` ("mean" or "sum" over
    tokens), ``scoring`` and ``separator`` (see `thrifty.formats.layout`), ``metric``.
    """

    has_head = False
    answers_untrained = True
    defaults: ClassVar[dict[str, Any]] = {"max_length": 256, "context": None, "likelihood": "mean", "scoring": "direct",
                                          "separator": "lines"}

    def __init__(self, name: str, backbone: Backbone, labels: Sequence[str] | None = None, **limits: Any) -> None:
        if name not in ("text-classification", "multiple-choice"):
            raise Unfit(f"demonstrations are followed by the likeliest of listed answers; {name} lists none.")
        self.name = name
        self.scores = ("macro_f1", "accuracy", "matthews") if name == "text-classification" else ("accuracy",)
        super().__init__(name_checked(backbone), labels, **limits)
        if self.limits["likelihood"] not in ("mean", "sum"):
            raise NoSuchSetting(f"likelihood is {self.limits['likelihood']!r}; it is 'mean' or 'sum'.")
        self.layout = Layout(self.limits["scoring"], self.limits["separator"])
        self.judging: Judging = ByClass(name, labels or ()) if name == "text-classification" else ByChoice()
        most = position_limit(backbone)
        self.limits["context"] = check_length(self.limits["context"] or min(CONTEXT, most or CONTEXT), most, "context")
        check_length(self.limits["max_length"], None)
        self.reads = bool(getattr(cast(Any, backbone.model).config, "is_encoder_decoder", False))
        kind = Answering if self.reads else Behind
        self.writer: Any = kind(backbone, None, max_length=self.limits["context"], max_new_tokens=4)
        self.encoder, self.tokenizer = self.writer.encoder, self.writer.encoder.tokenizer

    def ask(self, items: Sequence[Item], shown: Shown) -> list[dict[str, Any]]:
        """Every question behind its demonstrations, with each of its answers.

        Raises: BadData for an answer without room, or a question that does not fit behind the demonstrations; naming its row.
        """
        common = None if shown.corpus else self.demonstrate(shown, "")
        skipped = 0
        if isinstance(self.writer, Behind):
            self.writer.stand((common or [])[:-1])
            skipped = len(self.writer.before)
        examples = []
        for row, item in enumerate(items):
            before = self.demonstrate(shown, item.input) if common is None else common
            asked = [self.layout.ask(item.input, option, not shown.fixed) for option in shown.spell(item.options)]
            pairs = self.cut(asked, f"row {row}")
            longest = max(len(first) + len(second) for first, second in pairs)
            if len(before) + longest > self.limits["context"]:
                raise BadData(self.overflow(row, len(shown.fixed), len(before), longest))
            joined = [self.join(before[skipped:] + first, second) for first, second in pairs]
            examples.append({"pairs": joined, "input_ids": joined[0]["input_ids"]})
        return examples

    def demonstrate(self, shown: Shown, question: str) -> list[int]:
        """Token numbers of what stands before a question."""
        ids = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        for number, one in enumerate(shown.before(question)):
            for part in self.cut([self.layout.demonstrate(one, first=number == 0)], f"demonstration {number + 1}")[0]:
                ids += part
        return ids

    def cut(self, asked: Sequence[tuple[str, str]], where: str) -> list[tuple[list[int], list[int]]]:
        """One text with each of its answers, both parts as token numbers. A text that is too long for the longest answer loses its
        end, the same for all, as likelihoods of texts of different lengths could not be compared.

        Raises: BadData for an answer that leaves no room for a text.
        """
        text, answer = (0, 1) if self.layout.scoring == "direct" else (1, 0)
        pairs = [[self.tokenise(part) for part in parts] for parts in asked]
        longest = max(len(parts[answer]) for parts in pairs)
        room = int(self.limits["max_length"]) - SPARE - longest
        if room < 1:
            raise BadData(f"{where}: an answer has {longest} tokens, which leaves no room for its text in "
                          f"max_length={self.limits['max_length']}.")
        self.truncated += len(pairs[0][text]) > room
        for parts in pairs:
            parts[text] = parts[text][:room]
        return [(parts[0], parts[1]) for parts in pairs]

    def tokenise(self, text: str) -> list[int]:
        """Token numbers of a part by itself."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []

    def join(self, before: list[int], scored: list[int]) -> dict[str, Any]:
        """What stands before, and what is scored, as the writer takes it; what an encoder reads and a decoder writes has an end."""
        end = [self.tokenizer.eos_token_id]
        if self.reads:
            return {"input_ids": before + end, "labels": scored + end}
        return {"input_ids": before + scored, "labels": [IGNORED] * len(before) + scored}

    def overflow(self, row: int, shots: int, before: int, question: int) -> str:
        """What does not fit, in tokens, and what may be done."""
        context, fits = self.limits["context"], shots * max(0, self.limits["context"] - question) // max(1, before)
        higher = "" if position_limit(self.backbone) == context else ", or set context higher"
        return (f"row {row}: {shots} demonstrations of {before} tokens and a question of {question} make {before + question}, more "
                f"than the context of {context} tokens. About {min(fits, shots - 1)} demonstrations fit; or cut texts shorter than "
                f"max_length={self.limits['max_length']} tokens{higher}.")

    def groups(self, table: Table) -> Any:
        """Rows about one question, where a format judges them together."""
        return number_groups(table["group"]) if "group" in table else None

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """The examples themselves: how many answers go through the model at once is decided where they are ranked."""
        return {"examples": cast(Tensor, list(examples))}

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """``prediction`` is the number of the likeliest answer, ``scores`` the probability of each among them."""
        rows = [example["pairs"] for example in cast(Any, batch["examples"])]
        found = rank(self.writer, model, rows, len(rows), float(self.limits["likelihood"] == "mean"))
        return [{"prediction": max(range(len(scores)), key=scores.__getitem__), "scores": shares(scores)} for scores in found]

    def statistics(self, predictions: Sequence[Prediction], table: Table) -> dict[str, Statistic]:
        """The metrics of classes or choices."""
        return self.judging.statistics(predictions, table)

    def majority(self, train_table: Table, table: Table) -> list[Prediction]:
        """What is most often right in training, every time."""
        return self.judging.majority(train_table, table)

    def encode(self, table: Table) -> NoReturn:
        """Questions need demonstrations: see `ask`."""
        raise Unfit("questions in context are made by InContext.ask, which takes their demonstrations.")

    def loss(self, model: nn.Module, batch: Batch) -> NoReturn:
        """There is none."""
        raise Unfit("in-context learning trains nothing, so it has no loss.")


def name_checked(backbone: Backbone) -> Backbone:
    """``backbone``, if it can write.

    Raises: Unfit for a model that cannot.
    """
    can = getattr(backbone.model, "can_generate", None)
    if not (callable(can) and can()):
        raise Unfit(f"{type(backbone.model).__name__} writes no text, so it cannot answer in context.")
    return backbone

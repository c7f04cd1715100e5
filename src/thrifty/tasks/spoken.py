"""Any task, answered in words: a language model reads rows as a format writes them, and writes their answers."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from thrifty import formats
from thrifty.evaluate.answers import number_groups
from thrifty.evaluate.weighing import Statistic
from thrifty.formats.format import Format
from thrifty.formats.instructions import Instruction
from thrifty.formats.own import OwnTexts
from thrifty.formats.passages import Answer
from thrifty.models.backbone import Backbone
from thrifty.models.pooled import masked_mean
from thrifty.tasks.causal_generation import CausalGeneration
from thrifty.tasks.encoding import check_length, column, position_limit
from thrifty.tasks.features import text_features
from thrifty.tasks.generation import Generation
from thrifty.tasks.judging import ByAnswer, ByChoice, ByClass, ByNumber, ByText, Judging
from thrifty.tasks.seq2seq_generation import Seq2SeqGeneration
from thrifty.tasks.task import Batch, Prediction, Table, Task, predicting

FREE = 64   # tokens of an answer that no list bounds


class Continuing(CausalGeneration):
    """Writes answers behind a prompt."""

    measured = False


class Answering(Seq2SeqGeneration):
    """Writes answers to what an encoder has read."""

    measured = False


class Spoken(Task):
    """Rows as `thrifty.data.read` gives them with a format: ``text`` (or ``source``), ``target``, and what the answer is judged by.

    Training is on the likelihood of the target; answers are written greedily and read back. Limits: ``format`` and ``words`` (see
    `thrifty.formats.find`), ``answer`` (see `thrifty.tasks.ranked`), ``max_length``, ``max_new_tokens`` (by default as many as
    the longest answer needs), ``separator`` (between text and answer, for models without an encoder), ``metric``.
    """

    has_head = False
    answers_untrained = True
    defaults: ClassVar[dict[str, Any]] = {"format": None, "words": None, "answer": "auto", "max_length": None,
                                          "max_new_tokens": None, "separator": "\n"}

    def __init__(self, name: str, backbone: Backbone, labels: Sequence[str] | None = None, **limits: Any) -> None:
        self.name = name
        self.format: Format = formats.find(limits["format"], task=name, labels=labels, words=limits.get("words"))
        self.scores = self.format.scores
        super().__init__(backbone, labels, **limits)
        self.writer = self.make_writer()
        self.encoder, self.judging = self.writer.encoder, self.make_judging()
        for limit in ("max_length", "max_new_tokens"):
            self.limits[limit] = self.writer.limits[limit]

    def make_writer(self) -> Generation:
        """The task of writing the answers."""
        limits, free = {name: self.limits[name] for name in ("max_length", "max_new_tokens")}, isinstance(self.format, OwnTexts)
        if limits["max_new_tokens"] is None and not free:
            room = check_length(limits["max_length"], position_limit(self.backbone)) // 2
            limits["max_new_tokens"] = self.longest() or min(FREE, room)
        if getattr(getattr(self.backbone.model, "config", None), "is_encoder_decoder", False):
            return (Seq2SeqGeneration if free else Answering)(self.backbone, None, **limits)
        return (CausalGeneration if free else Continuing)(self.backbone, None, **limits, separator=self.limits["separator"])

    def longest(self) -> int | None:
        """Tokens of the longest answer with its end; None where answers are not listed, or fields of a row are learned as well."""
        tells = isinstance(self.format, Instruction) and self.format.tells
        if self.name == "multiple-choice" or tells or not self.format.options({}):
            return None
        tokenizer = self.backbone.preprocess
        return max(4, *(len(tokenizer(answer, add_special_tokens=False)["input_ids"]) + 1 for answer in self.format.options({})))

    def make_judging(self) -> Judging:
        """How answers are judged."""
        if self.name == "text-classification":
            return ByClass(self.name, self.labels or ())
        if self.name == "multiple-choice":
            return ByChoice()
        if self.name == "regression":
            return ByNumber()
        return ByText(self.writer) if isinstance(self.format, OwnTexts) else ByAnswer()

    def encode(self, table: Table) -> list[dict[str, Any]]:
        """Token numbers of text and target, and the row."""
        texts = column(table, "source" if isinstance(self.format, Answer) else "text", self.name)
        written = {"source": texts, **({"target": table["target"]} if "target" in table else {})}
        examples = self.writer.encode(written)
        self.truncated = self.writer.truncated
        for example, values in zip(examples, zip(*table.values(), strict=True), strict=True):
            row = dict(zip(table, values, strict=True))
            example |= {"prompt": self.writer.part(example), "row": row}
            if "label" in row:
                example["label"] = row["label"]
        return examples

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """What the writer makes of them; and the examples themselves, from which answers are read or ranked."""
        return {**self.writer.collate(examples), "examples": cast(Tensor, list(examples))}

    def inputs(self, model: nn.Module, batch: Batch) -> Batch:
        """The tensors that the model takes."""
        return self.writer.inputs(model, tensors(batch))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        """Cross-entropy over the tokens of the targets."""
        return self.writer.loss(model, tensors(batch))

    def judge(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """As `predict`, but nothing is written where the loss decides."""
        return self.writer.judge(model, tensors(batch)) if self.metric == "negative_loss" else self.predict(model, batch)

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """``prediction`` is what the answer means (-1: it names nothing), read from the ``written`` text."""
        examples: list[dict[str, Any]] = cast(Any, batch["examples"])
        if isinstance(self.format, Answer):
            return self.writer.predict(model, tensors(batch))
        with predicting(model):
            texts = self.encoder.tokenizer.batch_decode(self.writer.write(model, tensors(batch)), skip_special_tokens=True)
        return [{"prediction": self.format.read(text.strip(), example["row"]), "scores": None, "written": text.strip()}
                for text, example in zip(texts, examples, strict=True)]

    def statistics(self, predictions: Sequence[Prediction], table: Table) -> dict[str, Statistic]:
        """The metrics of the kind of answer; see `thrifty.tasks.judging`."""
        return self.judging.statistics(predictions, table)

    def groups(self, table: Table) -> Any:
        """Rows about one question, where the format judges them together."""
        return number_groups(table["group"]) if "group" in table else None

    def majority(self, train_table: Table, table: Table) -> list[Prediction]:
        """What is most often right in training, every time."""
        return self.judging.majority(train_table, table)

    def features(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean over the tokens of the text of the last hidden states, of the encoder if there is one [B, D].

        Raises: Unfit where a label could not be told from the text alone.
        """
        if self.name not in ("text-classification", "regression") or not self.format.featured:
            return super().features(model, batch)
        examples: list[dict[str, Any]] = cast(Any, batch["examples"])
        padded = self.encoder.pad([example["prompt"] for example in examples])
        inputs = {key: value.to(batch["input_ids"].device) for key, value in padded.items()}
        if isinstance(self.writer, CausalGeneration):
            return text_features(model, inputs)
        with predicting(model):
            return masked_mean(cast(Any, model).get_encoder()(**inputs)[0].float(), inputs["attention_mask"])


def tensors(batch: Batch) -> Batch:
    """A batch without the examples it was made of."""
    return {key: value for key, value in batch.items() if key != "examples"}

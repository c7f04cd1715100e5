"""Everything that can be set about asking a model with demonstrations: names, types, defaults, and what each is for."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from thrifty.core.errors import NoSuchSetting
from thrifty.formats.ablations import VARIANTS
from thrifty.train.checking import Checked, need, said


@dataclass(frozen=True)
class Asking(Checked):
    """How to ask. The defaults are those of Min et al., EMNLP 2022, arXiv:2202.12837."""

    purpose = "asking in context"

    shots: int = said(16, "demonstrations in front of each question; 0 asks without any")
    seeds: str = said("100,13,21,42,87", "of the choice of demonstrations and of what they show; the report gives the mean")
    choose: Literal["random", "balanced"] = said("random", "any training rows, or as many of every class")
    demonstrations: str = said("gold", "what they show: " + ", ".join(VARIANTS))
    corpus: str | None = said(None, "for ood_inputs: a file with one sentence a line")
    scoring: Literal["direct", "channel"] = said("direct", "rank answers behind the text, or the text behind each answer")
    separator: Literal["lines", "spaces", "flan"] = said("lines", "what stands between texts and answers")
    likelihood: Literal["mean", "sum"] = said("mean", "of the scored tokens")
    max_length: int = said(256, "tokens of one text with its answer; the end of longer texts is cut off")
    context: int | None = said(None, "tokens of demonstrations and question (default: 1024, or as many as the model takes)")

    task: str | None = said(None, "what the data is for; inferred from its columns unless told")
    columns: dict[str, Any] | None = said(None, "role=column pairs where names leave a choice: text=review,label=stars")
    format: str | None = said(None, "write texts and answers as this says: t5:mrpc, flan:rte:0, 'Is this good? {review}'")
    words: dict[str, Any] | None = said(None, "label=word pairs that spell classes in a format otherwise than it does")
    limit: int | None = said(None, "draw demonstrations from at most this many training rows")
    allow_leak: bool = said(False, "go on although equal rows lie in different splits; the report says so")
    skip_bad: bool = said(False, "leave out rows that cannot be used; the report says so")
    split_seed: int = said(0, "for carving splits where the data has none")
    metric: str | None = said(None, "the metric that the report begins with")

    batch: int = said(8, "answers that go through the model at once")
    precision: Literal["auto", "float32", "bfloat16"] = said("auto", "auto computes in bfloat16 where the processor has it")
    device: str = said("auto", "cpu, cuda, cuda:1, mps; auto takes an accelerator if there is one")
    baselines: bool = said(True, "measure the majority class and the same model without demonstrations too")

    def refuse_odd(self) -> None:
        """Raises: NoSuchSetting."""
        need(self.demonstrations in VARIANTS, "demonstrations", self.demonstrations, "one of " + ", ".join(VARIANTS))
        need(self.shots >= 0, "shots", self.shots, "at least 0")
        need(self.batch >= 1, "batch", self.batch, "at least 1")
        need(self.limit is None or self.limit >= 1, "limit", self.limit, "at least 1")
        need(len(set(self.numbers())) == len(self.numbers()), "seeds", self.seeds, "different numbers")
        need(self.shots > 0 or self.demonstrations == "gold", "demonstrations", self.demonstrations, "gold where none are shown")
        if self.words is not None and self.format is None:
            raise NoSuchSetting("words is a setting of formats: give one (--format)")

    def numbers(self) -> list[int]:
        """The seeds.

        Raises:
            NoSuchSetting: they are no whole numbers of at least 0.
        """
        try:
            found = [int(part) for part in self.seeds.split(",")]
        except ValueError:
            raise NoSuchSetting(f"seeds must be whole numbers with commas between them, not {self.seeds!r}") from None
        need(min(found) >= 0, "seeds", self.seeds, "at least 0")
        return found

"""The data sets of FLAN with their fields and answers, told in this library's own words.

Wei, Bosma, Zhao, Guu, Yu, Lester, Du, Dai, Le: Finetuned Language Models Are Zero-Shot Learners; ICLR 2022, arXiv:2109.01652.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from thrifty.formats.format import Field, Row
from thrifty.formats.instructions import (
    ChoiceInstruction,
    ClassInstruction,
    Filling,
    Instruction,
    NumberInstruction,
    TextInstruction,
)
from thrifty.formats.template import Template
from thrifty.formats.wording import choices, inference, pairs, questions, sentences, words

# The published mixture: rows taken of each set, kept of each for validation, and the cap of `thrifty.data.mixing.proportional`.
MOST_ROWS, VALIDATION_ROWS, CAP = 30_000, 200, 3_000

NLI = ("entailment", "neutral", "contradiction")
ENTAILED, TRUTH, NO_YES = ("entailment", "not_entailment"), ("False", "True"), ("no", "yes")
MOOD = ("negative", "positive")
F1, ACCURACY = ("f1", "accuracy", "matthews"), ("accuracy", "macro_f1", "matthews")
Templates = tuple[Template, ...]


def renamed(**names: str) -> Filling:
    """Fields of the templates from columns of other names: ``text="passage"``."""
    return lambda row: {field: str(row[column]) for field, column in names.items()}


def fields(*names: str | Field) -> tuple[Field, ...]:
    """Names of texts, and fields."""
    return tuple(Field(name) if isinstance(name, str) else name for name in names)


def same(*names: str) -> Filling:
    """Fields of the templates that are columns of the same names; what a row lacks is left out."""
    return lambda row: {name: str(row[name]) for name in names if row.get(name) is not None}


def classes(name: str, columns: tuple[Field, ...], templates: Templates, labels: tuple[str, ...], answers: tuple[str, ...] = (),
            filling: Filling | None = None, scores: tuple[str, ...] = ACCURACY) -> ClassInstruction:
    """A data set with classes."""
    return ClassInstruction(f"flan:{name}", columns, scores, labels=labels, answers=answers, templates=templates,
                            filling=filling or same(*(field.name for field in columns)))


def choosing(name: str, columns: tuple[Field, ...], templates: Templates, filling: Filling | None = None,
             pick: Callable[[Row], Any] = lambda row: row["choices"]) -> ChoiceInstruction:
    """A data set whose rows have choices of their own."""
    texts = [field.name for field in columns if field.kind == "text"]
    return ChoiceInstruction(f"flan:{name}", columns, templates=templates, filling=filling or same(*texts), pick=pick)


def part_title(row: Row) -> dict[str, str]:
    """BoolQ's passages begin with a title and two dashes; where one does not, wordings without a title tell it."""
    title, dashes, text = str(row["passage"]).partition(" -- ")
    question = {"question": str(row["question"])}
    return {**question, "title": title, "text": text} if dashes else {**question, "text": title}


PAIR, INFERENCE = fields("sentence1", "sentence2"), fields("premise", "hypothesis")
CHOICES = Field("choices", "texts", ("options", "endings"))
IN_DOUBT = ("yes", "it is not possible to tell", "no")
TITLE = Field("title", needed=False)
OPINION = fields(Field("text", others=("sentence", "review", "content")))

SETS: tuple[Instruction, ...] = (
    classes("rte", INFERENCE, inference.ENTAILMENT, ENTAILED, ("yes", "no")),
    classes("cb", INFERENCE, inference.ENTAILMENT, ("entailment", "contradiction", "neutral"),
            ("Yes", "No", "It's impossible to say"), scores=("macro_f1", "accuracy", "matthews")),
    classes("anli", INFERENCE, inference.ENTAILMENT, NLI, ("Yes", "It's impossible to say", "No")),
    classes("mnli", INFERENCE, inference.ENTAILMENT, NLI, IN_DOUBT),
    classes("snli", INFERENCE, inference.ENTAILMENT, NLI, IN_DOUBT),
    classes("wnli", PAIR, inference.ENTAILMENT, ("not_entailment", "entailment"), NO_YES,
            renamed(premise="sentence1", hypothesis="sentence2")),
    classes("qnli", fields("question", "sentence"), inference.ANSWERED, ENTAILED, ("yes", "no")),
    classes("mrpc", PAIR, pairs.PARAPHRASE, ("not_equivalent", "equivalent"), NO_YES, scores=F1),
    classes("paws", PAIR, pairs.PARAPHRASE, ("different", "paraphrase"), NO_YES),
    classes("qqp", fields("question1", "question2"), pairs.DUPLICATE, ("not_duplicate", "duplicate"), NO_YES, scores=F1),
    NumberInstruction("flan:stsb", PAIR, templates=pairs.SIMILARITY, filling=same("sentence1", "sentence2")),
    classes("cola", fields("sentence"), sentences.ACCEPTABILITY, ("unacceptable", "acceptable"),
            scores=("matthews", "accuracy", "macro_f1")),
    *(classes(name, OPINION, sentences.SENTIMENT, MOOD) for name in ("sst2", "imdb", "yelp", "sentiment140")),
    classes("ag_news", (*OPINION, TITLE), sentences.TOPIC, ("World", "Sports", "Business", "Sci/Tech"),
            ("World", "Sports", "Business", "Science/Tech")),
    classes("classify", OPINION, sentences.CLASSES, ()),
    classes("boolq", fields("passage", "question"), questions.YES_NO, TRUTH, NO_YES, part_title),
    classes("multirc", fields("paragraph", "question", "answer"), questions.RESPONSE, TRUTH, NO_YES,
            renamed(paragraph="paragraph", question="question", response="answer"), ("f1", "accuracy", "matthews")),
    classes("wsc", fields("text", "span1_text", "span2_text"), words.PRONOUN, TRUTH, NO_YES,
            renamed(context="text", text1="span1_text", text2="span2_text")),
    classes("wic", fields("sentence1", "sentence2", "word"), words.SENSE, TRUTH, ("different meanings", "the same meaning")),
    choosing("copa", fields("premise", "choice1", "choice2", "question"), choices.CAUSE, same("premise", "question"),
             lambda row: (row["choice1"], row["choice2"])),
    choosing("piqa", fields("goal", Field("sol1", others=("solution1",)), Field("sol2", others=("solution2",))), choices.GOAL,
             same("goal"), lambda row: (row["sol1"], row["sol2"])),
    choosing("hellaswag", fields(Field("context", others=("ctx",)), CHOICES), choices.ENDING),
    choosing("story_cloze", fields("context", CHOICES), choices.ENDING),
    choosing("openbookqa", fields(Field("question", others=("question_stem",)), CHOICES), choices.EXAM),
    choosing("arc", fields("question", CHOICES), choices.EXAM),
    choosing("cosmos_qa", fields("context", "question", CHOICES), choices.PASSAGE),
    TextInstruction("flan:squad_v2", fields("context", "question", TITLE), templates=questions.READING,
                    filling=same("context", "question", "title")),
)
FLAN = {format.name: format for format in SETS}

"""Every GLUE and SuperGLUE task as T5 reads and writes it.

Raffel, Shazeer, Roberts, Lee, Narang, Matena, Zhou, Li, Liu: Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer; JMLR 2020, arXiv:1910.10683, with the formats of the authors' code: its WiC has no "pos:" as the paper's
appendix prints it. GLUE's RTE and SuperGLUE's have other keys; MNLI's and SuperGLUE's diagnostic sets are written as MNLI and RTE.
"""
from __future__ import annotations

from thrifty.formats.classes import Classes
from thrifty.formats.format import Field, Format
from thrifty.formats.keyed import Keyed
from thrifty.formats.numbers import Similarity
from thrifty.formats.passages import MultiRC, ReCoRD, SQuAD
from thrifty.formats.winograd import DPR, WNLI, WSC, MarkedWSC

ENTAILED, NLI = ("entailment", "not_entailment"), ("entailment", "neutral", "contradiction")
TRUTH = ("False", "True")
F1 = ("f1", "accuracy", "matthews")
ACCURACY = ("accuracy", "macro_f1", "matthews")
PAIR = (Field("sentence1"), Field("sentence2"))
INFERENCE = (Field("premise"), Field("hypothesis"))
SPANS = (Field("text"), Field("span1_text"), Field("span1_index", "whole"), Field("span2_text"), Field("span2_index", "whole"))


def keyed(name: str, fields: tuple[Field, ...], labels: tuple[str, ...], scores: tuple[str, ...] = ACCURACY,
          kind: type[Keyed] = Keyed, **more: object) -> Keyed:
    """A task that follows the rule, with its own name in front unless ``prefix`` says otherwise."""
    return kind(f"t5:{name}", fields, scores, labels=labels, **{"prefix": name, **more})  # type: ignore[arg-type]


def plain(*names: str) -> tuple[Field, ...]:
    """Fields that are texts."""
    return tuple(map(Field, names))


def winograd(kind: type[Classes], name: str, fields: tuple[Field, ...], labels: tuple[str, ...] = TRUTH) -> Classes:
    """A task about pronouns."""
    return kind(f"t5:{name}", fields, ACCURACY, labels=labels)


GLUE: tuple[Format, ...] = (
    keyed("cola", plain("sentence"), ("unacceptable", "acceptable"), ("matthews", "accuracy", "macro_f1")),
    keyed("sst2", plain("sentence"), ("negative", "positive")),
    keyed("mrpc", PAIR, ("not_equivalent", "equivalent"), F1),
    keyed("qqp", plain("question1", "question2"), ("not_duplicate", "duplicate"), F1),
    Similarity("t5:stsb", PAIR),
    keyed("mnli", INFERENCE, NLI),
    keyed("ax", INFERENCE, NLI, prefix="mnli"),
    keyed("qnli", plain("question", "sentence"), ENTAILED),
    keyed("rte", PAIR, ENTAILED),
    winograd(WNLI, "wnli", PAIR, ("not_entailment", "entailment")),
)
SUPERGLUE: tuple[Format, ...] = (
    keyed("boolq", plain("passage", "question"), TRUTH),
    keyed("cb", INFERENCE, ("entailment", "contradiction", "neutral"), ("macro_f1", "accuracy", "matthews")),
    keyed("copa", plain("premise", "choice1", "choice2", "question"), ("choice1", "choice2")),
    keyed("multirc", plain("paragraph", "question", "answer"), TRUTH, ("f1", "exact_match", "accuracy"), MultiRC,
          order=(("question", "question"), ("answer", "answer"), ("paragraph", "paragraph"))),
    ReCoRD("t5:record", (Field("passage"), Field("query"), Field("entities", "texts"))),
    keyed("superglue-rte", INFERENCE, ENTAILED, prefix="rte"),
    keyed("axb", PAIR, ENTAILED, prefix="rte", order=(("hypothesis", "sentence2"), ("premise", "sentence1"))),
    keyed("axg", INFERENCE, ENTAILED, prefix="rte"),
    keyed("wic", plain("sentence1", "sentence2", "word"), TRUTH,
          order=(("sentence1", "sentence1"), ("sentence2", "sentence2"), ("word", "word"))),
    winograd(WSC, "wsc", tuple(field for field in SPANS if field.name != "span1_index")),
    winograd(MarkedWSC, "wsc-marked", SPANS),
    DPR("t5:dpr", (Field("sentence"), Field("pronoun"), Field("candidates", "texts"))),
)
QUESTIONS: tuple[Format, ...] = (
    SQuAD("t5:squad", plain("question", "context")),
    SQuAD("t5:squad-trivia", plain("question"), closed=True),
)
T5 = {format.name: format for format in (*GLUE, *SUPERGLUE, *QUESTIONS)}

# Rows of each task's training set, by which the joint mixture draws: `thrifty.data.mixing.proportional(ROWS, scale=HALVED)`.
# WNLI is left out as WSC holds its sentences; diagnostic sets have no training rows.
GLUE_ROWS = {"t5:cola": 8_551, "t5:sst2": 67_349, "t5:mrpc": 3_668, "t5:qqp": 363_849, "t5:stsb": 5_749, "t5:mnli": 392_702,
             "t5:qnli": 104_743, "t5:rte": 2_490}
SUPERGLUE_ROWS = {"t5:dpr": 1_322, "t5:wsc": 259, "t5:boolq": 9_427, "t5:cb": 250, "t5:copa": 400, "t5:multirc": 27_243,
                  "t5:record": 138_854, "t5:superglue-rte": 2_490, "t5:wic": 5_428}
ROWS = {**GLUE_ROWS, **SUPERGLUE_ROWS}
HALVED = {"t5:rte": 0.5, "t5:superglue-rte": 0.5}     # one set that occurs in both suites

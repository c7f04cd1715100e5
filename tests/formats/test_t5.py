"""T5's formats: one row of each task, letter by letter, and what is read back from an answer."""
from __future__ import annotations

import math
from typing import Any

import pytest

from thrifty import formats
from thrifty.core.errors import NoSuchSetting
from thrifty.data.mixing import proportional
from thrifty.formats import Unwritable, t5
from thrifty.formats.classes import Classes
from thrifty.formats.numbers import read_number
from thrifty.formats.winograd import is_referent, mark, star

PAIR = {"sentence1": "A b.", "sentence2": "C, d?"}
NLI = {"premise": "It rained.", "hypothesis": "It was wet."}
TIM = {"text": "Mitchell asked Tom if he could lend some money.", "span1_text": "Tom", "span1_index": 2, "span2_text": "he",
       "span2_index": 4}
GOLDEN: list[tuple[str, dict[str, Any], str, str]] = [
    ("t5:cola", {"sentence": "John made him mad.", "label": 1}, "cola sentence: John made him mad.", "acceptable"),
    ("t5:cola", {"sentence": "Him.", "label": 0}, "cola sentence: Him.", "unacceptable"),
    ("t5:sst2", {"sentence": "so dull", "label": 0}, "sst2 sentence: so dull", "negative"),
    ("t5:mrpc", {**PAIR, "label": 1}, "mrpc sentence1: A b. sentence2: C, d?", "equivalent"),
    ("t5:qqp", {"question1": "A?", "question2": "B?", "label": 0}, "qqp question1: A? question2: B?", "not_duplicate"),
    ("t5:stsb", {**PAIR, "label": 1.8}, "stsb sentence1: A b. sentence2: C, d?", "1.8"),
    ("t5:mnli", {**NLI, "label": 1}, "mnli hypothesis: It was wet. premise: It rained.", "neutral"),
    ("t5:ax", {**NLI, "label": 2}, "mnli hypothesis: It was wet. premise: It rained.", "contradiction"),
    ("t5:qnli", {"question": "Who?", "sentence": "She.", "label": 0}, "qnli question: Who? sentence: She.", "entailment"),
    ("t5:rte", {**PAIR, "label": 1}, "rte sentence1: A b. sentence2: C, d?", "not_entailment"),
    ("t5:wnli", {"sentence1": "The fish ate the worm. It was tasty.", "sentence2": "The worm was tasty.", "label": 1},
     "wsc: The fish ate the worm. *It* was tasty.", "The worm"),
    ("t5:boolq", {"passage": "P.", "question": "is it", "label": 1}, "boolq passage: P. question: is it", "True"),
    ("t5:cb", {**NLI, "label": 1}, "cb hypothesis: It was wet. premise: It rained.", "contradiction"),
    ("t5:copa", {"premise": "P.", "choice1": "A.", "choice2": "B.", "question": "cause", "label": 1},
     "copa choice1: A. choice2: B. premise: P. question: cause", "choice2"),
    ("t5:multirc", {"paragraph": "<b>Sent 1: </b>He ran.<br>She sat.", "question": "Who?", "answer": "He", "label": 1},
     "multirc question: Who? answer: He paragraph: Sent 1: He ran. She sat.", "True"),
    ("t5:record", {"passage": "One.\n@highlight\nTwo\n@highlight\nThree", "query": "A @placeholder is.", "entities": ["x", "y z"],
                   "references": ["y z", "x"]},
     "record query: A @placeholder is. entities: x, y z passage: One. Two. Three", "y z"),
    ("t5:superglue-rte", {**NLI, "label": 0}, "rte hypothesis: It was wet. premise: It rained.", "entailment"),
    ("t5:axb", {**PAIR, "label": 0}, "rte hypothesis: C, d? premise: A b.", "entailment"),
    ("t5:axg", {**NLI, "label": 1}, "rte hypothesis: It was wet. premise: It rained.", "not_entailment"),
    ("t5:wic", {"sentence1": "A bank.", "sentence2": "The bank.", "word": "bank", "label": 0},
     "wic sentence1: A bank. sentence2: The bank. word: bank", "False"),
    ("t5:wsc", {**TIM, "label": 1}, "wsc: Mitchell asked Tom if *he* could lend some money.", "Tom"),
    ("t5:wsc-marked", {"text": "This is a test sentence .", "span1_text": "test", "span1_index": 3, "span2_text": "This",
                       "span2_index": 0, "label": 0}, "wsc text: # This # is a * test * sentence .", "False"),
    ("t5:wsc-marked", {**TIM, "label": 1}, "wsc text: Mitchell asked * Tom * if # he # could lend some money.", "True"),
    ("t5:dpr", {"sentence": "Bob asked Tom if he can lend what he has.", "pronoun": "he", "candidates": ["Bob", "Tom"], "label": 1},
     "wsc: Bob asked Tom if *he* can lend what he has.", "Tom"),
    ("t5:squad", {"question": "What's it?", "context": "A dog (big).", "references": ["a dog (big)", "dog"]},
     "question: What ' s it ? context: A dog ( big ) . ", "a dog (big)"),
    ("t5:squad-trivia", {"question": "Who won?", "references": ["x"]}, "squad trivia question: Who won ? ", "x"),
]


@pytest.mark.parametrize(("name", "row", "source", "target"), GOLDEN)
def test_a_row_letter_by_letter(name: str, row: dict[str, Any], source: str, target: str) -> None:
    format = formats.find(name)
    assert format.write(row) == source and format.target(row) == target


def test_every_format_of_t5_has_a_golden_row() -> None:
    assert {name for name, *_ in GOLDEN} == set(t5.T5)


def test_targets_are_those_of_the_published_table() -> None:
    truth = ("False", "True")
    published = {"cola": ("unacceptable", "acceptable"), "sst2": ("negative", "positive"), "mrpc": ("not_equivalent", "equivalent"),
                 "qqp": ("not_duplicate", "duplicate"), "mnli": ("entailment", "neutral", "contradiction"),
                 "qnli": ("entailment", "not_entailment"), "rte": ("entailment", "not_entailment"), "boolq": truth, "wic": truth,
                 "cb": ("entailment", "contradiction", "neutral"), "copa": ("choice1", "choice2"), "multirc": truth,
                 "superglue-rte": ("entailment", "not_entailment"), "wsc-marked": truth}
    for name, answers in published.items():
        assert formats.find(f"t5:{name}").options({}) == answers
    assert formats.find("t5:wsc").labels == truth  # type: ignore[attr-defined]


def test_every_label_comes_back_from_its_target_and_nothing_else_does() -> None:
    for name, format in t5.T5.items():
        if isinstance(format, Classes) and name not in ("t5:wsc", "t5:wnli"):
            for label in range(len(format.labels)):
                assert format.read(format.target({"label": label}), {}) == label
            for wrong in ("", "maybe", format.answers[0].upper() + "!", format.answers[0] + " ", f" {format.answers[1]}"):
                assert format.read(wrong, {}) == -1
            assert format.target({"label": -1}) == "<unk>" and format.target({}) == "<unk>"


def test_similarities_lie_on_the_grid_of_fifths() -> None:
    format = formats.find("t5:stsb")
    grid = {f"{i / 5:.1f}" for i in range(26)}
    assert {format.target({"label": i / 100}) for i in range(501)} == grid
    halves = {0.5: "0.4", 0.7: "0.8", 0.3: "0.4", 0.1: "0.0", 4.9: "4.8"}     # they go to the even multiple of a fifth
    for label, target in {**halves, 5.0: "5.0", 0: "0.0", 2.52: "2.6"}.items():
        assert format.target({"label": label}) == target, label
    assert [format.read(text, {}) for text in ("3.4", "4", "-2", "warm", "", "nan", "inf")] == [3.4, 4, -2, -1, -1, -1, -1]
    assert format.target({}) == "<unk>" and read_number("1e400") == -1


@pytest.mark.parametrize(("said", "candidate", "meant"), [
    ("the city councilmen", "councilmen", 1), ("Bob", "Bob's hat", 0), ("", "x", -1), ("the", "x", -1), ("Tom", "Bob", 0),
    ("bunny", "the fuzzy bunny", 1), ("My Fuzzy Bunny", "bunny", 1), ("Tom and Bob", "Bob", 1), ("Bob's", "Bob's hat", 1),
    ("old man", "old woman", 0),
])
def test_who_is_meant(said: str, candidate: str, meant: int) -> None:
    assert is_referent(said, candidate) == meant
    assert formats.find("t5:wsc").read(said, {"span1_text": candidate}) == meant


def test_pronouns_are_starred_where_they_stand() -> None:
    assert star("She saw it , and it ran", "it", 5) == "She saw it , and *it* ran"
    assert star('"Good for him," he said. ', "him", 2) == '"Good for *him* ," he said.'     # punctuation is parted from it
    assert star("a b c it d", "it", 2) == "a b c *it* d", "another word stands at the index: the nearest place is meant"
    with pytest.raises(Unwritable, match="'they' does not stand"):
        star("She saw it", "they", 1)
    with pytest.raises(Unwritable, match="word 3 of .* does not begin 'dog'"):
        mark("The cat sat down", "dog", 3, "*")
    with pytest.raises(Unwritable, match="'her' does not stand"):
        formats.find("t5:dpr").write({"sentence": "Ann left.", "pronoun": "her", "candidates": ["Ann", "Eve"], "label": 0})
    punctuated = {"sentence": "Ann saw Eve and thanked her.", "pronoun": "her", "candidates": ["Ann", "Eve"], "label": 1}
    assert formats.find("t5:dpr").write(punctuated) == "wsc: Ann saw Eve and thanked *her*."


@pytest.mark.parametrize(("premise", "hypothesis", "starred", "phrase"), [
    ("Jane gave Joan candy because she was hungry.", "Joan was hungry.", "Jane gave Joan candy because *she* was hungry.", "Joan"),
    ("I put the cake away in the refrigerator. It has a lot of butter in it.", "The cake has a lot of butter in it.",
     "I put the cake away in the refrigerator. *It* has a lot of butter in it.", "The cake"),
    ("Tom spoke to Ralph as he moved his bishop.", "Tom spoke to Ralph as he moved Tom's bishop.",
     "Tom spoke to Ralph as he moved *his* bishop.", "Tom"),
    ("The pupils were bullied, so we rescued them.", "We rescued the pupils.",
     "The pupils were bullied, so we rescued *them* .", "the pupils"),
])
def test_wnli_becomes_a_schema(premise: str, hypothesis: str, starred: str, phrase: str) -> None:
    row = {"sentence1": premise, "sentence2": hypothesis}
    format = formats.find("t5:wnli")
    assert (format.write(row), format.target(row)) == (f"wsc: {starred}", phrase)
    assert format.read(phrase, row) == 1 and format.read("somebody else", row) == 0


def test_wnli_that_replaces_no_pronoun() -> None:
    with pytest.raises(Unwritable, match="no pronoun"):
        formats.find("t5:wnli").write({"sentence1": "He ran to him.", "sentence2": "Nothing of the kind."})


def test_only_right_candidates_are_taught_and_all_are_judged() -> None:
    rows = [{**TIM, "label": 1}, {**TIM, "span1_text": "Mitchell", "label": 0}]
    assert list(formats.find("t5:wsc").lessons(rows)) == [(0, "wsc: Mitchell asked Tom if *he* could lend some money.", "Tom")]


def test_record_teaches_every_answer() -> None:
    row = {"passage": "P", "query": "q", "entities": ["a", "b"], "references": ["a", "b"]}
    lessons = list(formats.find("t5:record").lessons([row, {**row, "references": []}]))
    assert [(number, target) for number, _, target in lessons] == [(0, "a"), (0, "b"), (1, "<unk>")]
    quoted = 'He said "no"\n@highlight\nShe left!\n@highlight\nEnd'
    assert formats.find("t5:record").write({**row, "passage": quoted}).endswith('passage: He said "no" She left! End')


def test_rows_of_one_question_hang_together() -> None:
    format = formats.find("t5:multirc")
    one, other = {"paragraph": "P", "question": "Q", "answer": "a"}, {"paragraph": "P", "question": "R", "answer": "a"}
    assert format.group(one) == format.group({**one, "answer": "b"}) != format.group(other)
    assert formats.find("t5:cola").group({"sentence": "a"}) is None


def test_the_joint_mixture() -> None:
    rates = proportional(t5.ROWS, scale=t5.HALVED)
    counts = [8_551, 67_349, 3_668, 363_849, 5_749, 392_702, 104_743, 1_245,
              1_322, 259, 9_427, 250, 400, 27_243, 138_854, 1_245, 5_428]
    assert list(rates.values()) == pytest.approx([count / sum(counts) for count in counts])
    assert math.fsum(rates.values()) == pytest.approx(1) and set(rates) <= set(t5.T5)


@pytest.mark.parametrize(("name", "said"), [
    ("t5:mprc", "Did you mean 't5:mrpc'"), ("t5:cola:1", "no format 't5:cola:1'"), ("cola", "t5:cola"), ("", "no format ''"),
    ("flan:rte:10", "10 wordings, numbered from 0"), ("flan:rte:9", "tells the answer"), ("{}", "no place for a column"),
])
def test_names_that_nobody_knows(name: str, said: str) -> None:
    with pytest.raises(NoSuchSetting, match=said):
        formats.find(name)


def test_classes_and_words_that_do_not_fit() -> None:
    assert formats.find("t5:cola", words={"acceptable": "fine"}).options({}) == ("unacceptable", "fine")
    with pytest.raises(NoSuchSetting, match="'good'.*Known: acceptable, unacceptable"):
        formats.find("t5:cola", words={"good": "fine"})
    with pytest.raises(NoSuchSetting, match="stand for several classes"):
        formats.find("t5:cola", words={"acceptable": "unacceptable"})
    with pytest.raises(NoSuchSetting, match="words spell classes"):
        formats.find("t5:stsb", words={"a": "b"})
    with pytest.raises(NoSuchSetting, match="has the classes unacceptable, acceptable, not a, b"):
        formats.find("t5:cola", labels=["a", "b"])
    with pytest.raises(NoSuchSetting, match="is for regression, not for text-classification"):
        formats.find("t5:stsb", task="text-classification")
    with pytest.raises(NoSuchSetting, match="cannot serve token-classification"):
        formats.find("{text}", task="token-classification")


def test_texts_of_ones_own() -> None:
    sorting = formats.find("Sort {text} ({where})", labels=["x", "y"], words={"y": "why"})
    assert sorting.write({"text": "a {b} c", "where": "here"}) == "Sort a {b} c (here)" and sorting.target({"label": 1}) == "why"
    assert [sorting.read(text, {}) for text in ("x", "y", "why")] == [0, -1, 1]
    rating = formats.find("Rate {text}", task="regression")
    assert (rating.target({"label": 3.14159}), rating.target({"label": 2.0}), rating.read("2.5", {})) == ("3.142", "2", 2.5)
    writing = formats.find("translate English to German: {source}", task="seq2seq-generation")
    assert writing.write({"source": "That is good."}) == "translate English to German: That is good."
    assert writing.target({"references": ["Das ist gut."]}) == "Das ist gut." and writing.task == "generation"

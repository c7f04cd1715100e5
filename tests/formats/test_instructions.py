"""Instructions: every wording of every set, the order in which rows take them, and what is kept apart."""
from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from thrifty import formats
from thrifty.core.errors import NoSuchSetting
from thrifty.formats.flan import FLAN
from thrifty.formats.instructions import Instruction
from thrifty.formats.template import Template, fill

SETS = list(FLAN)


def row(format: Instruction, number: int = 0) -> dict[str, Any]:
    """A row with every field of a set, and a label."""
    made: dict[str, Any] = {field.name: f"<{field.name} {number}>" for field in format.fields}
    made |= {field.name: [f"A{number}", "B {x}"] for field in format.fields if field.kind == "texts"}
    if format.name == "flan:boolq":
        made["passage"] += " -- Text."      # with a title, which two of the wordings name
    if format.task == "generation":
        return {**made, "references": [f"answer {number}"]}
    return {**made, "label": 3.4 if format.task == "regression" else 1}


def ready(name: str) -> Instruction:
    labels = ["one", "two"] if name == "flan:classify" else None
    return formats.find(name, labels=labels)  # type: ignore[return-value]


@pytest.mark.parametrize("name", SETS)
def test_every_wording_fills_every_place(name: str) -> None:
    format = ready(name)
    assert len(format.templates) == 10 and len({template.source for template in format.templates}) == 10
    told = list(format.lessons([row(format, i) for i in range(10)]))
    assert [number for number, _, _ in told] == list(range(10))
    for number, source, target in told:
        assert not re.search(r"\{(?!x\})", source + target) and "None" not in source, source
        shown = [field.name for field in format.fields if field.kind == "text" and f"<{field.name} {number}>" in source + target]
        assert shown or format.task == "multiple-choice", source


@pytest.mark.parametrize("name", SETS)
def test_direct_wordings_ask_and_list_the_answers_last(name: str) -> None:
    format = ready(name)
    direct = [template for template in format.templates if not template.inverse]
    assert len(direct) >= 7 and 10 - len(direct) <= 3
    asked = [format.write(row(format), turn) for turn in range(len(direct))]
    assert len(set(asked)) == len(direct)
    answers = format.options(row(format))
    if answers:
        assert format.target(row(format)) in answers and len(set(answers)) == len(answers)
        block = "\n\nOPTIONS:" + "".join(f"\n- {answer}" for answer in answers)
        listing = [text for text in asked if "OPTIONS:" in text]
        assert len(listing) >= 6 and all(text.endswith(block) for text in listing)
        assert len(listing) < len(asked) or name in ("flan:cola", "flan:classify"), "some ask without a list"
        assert sum(answer == format.target(row(format)) for answer in answers) == 1


def test_both_orders_of_text_and_instruction() -> None:
    for name in SETS:
        format = ready(name)
        starts = [template.source.startswith("{") for template in format.templates if not template.inverse]
        assert 0 < sum(starts) < len(starts), name


def test_answers_in_the_published_order() -> None:
    no_yes, mood, doubt = ("no", "yes"), ("negative", "positive"), ("yes", "it is not possible to tell", "no")
    published = {"rte": ("yes", "no"), "qnli": ("yes", "no"), "cb": ("Yes", "No", "It's impossible to say"),
                 "anli": ("Yes", "It's impossible to say", "No"), "mnli": doubt, "snli": doubt,
                 "wic": ("different meanings", "the same meaning"), "cola": ("unacceptable", "acceptable"), "stsb": tuple("012345"),
                 "ag_news": ("World", "Sports", "Business", "Science/Tech")}
    published |= dict.fromkeys(("wsc", "boolq", "multirc", "wnli", "mrpc", "qqp", "paws"), no_yes)
    published |= dict.fromkeys(("sst2", "imdb", "yelp", "sentiment140"), mood)
    for name, answers in published.items():
        assert FLAN[f"flan:{name}"].options({}) == answers


def test_rows_take_the_wordings_in_turn_and_each_as_often() -> None:
    format = ready("flan:rte")
    rows = [row(format, i) for i in range(37)]
    lessons = list(format.lessons(rows))
    assert len(lessons) == 30, "the rest of the last group is left out"
    place = {i: next(k for k, template in enumerate(format.templates)
                     if format.tell(template, rows[i], format.filling(rows[i])) == (source, target))
             for i, source, target in lessons}
    assert all(place[i] == i % 10 for i in place) and set(Counter(place.values()).values()) == {3}
    assert len(list(format.lessons(rows[:7]))) == 7, "less than one group is taught whole"
    assert len(list(ready("flan:rte:2").lessons(rows))) == 37
    assert {s.split("<")[0] for _, s, _ in ready("flan:rte:2").lessons(rows)} == {"Suppose that the following holds: "}
    assert format.write(rows[0], 4) == format.write(rows[0], 4 + 9), "one of ten is inverse and is not asked"


def test_inverse_wordings_teach_a_field() -> None:
    format = ready("flan:sst2")
    lessons = [lesson for lesson in format.lessons([row(format, i) for i in range(10)]) if lesson[2] not in format.answers]
    assert len(lessons) == 2 and all(target == f"<text {number}>" and "positive" in source for number, source, target in lessons)


def test_wordings_that_need_a_title_wait_for_one() -> None:
    format = ready("flan:boolq")
    plain = {"passage": "It is so.", "question": "is it so", "label": 1}
    titled = {**plain, "passage": "Being -- It is so."}
    assert all("Being" not in format.write(plain, i) for i in range(9))
    assert any("Being" in format.write(titled, i) for i in range(9)) and all("--" not in format.write(titled, i) for i in range(9))
    news = ready("flan:ag_news")
    assert len({news.write({"text": "A storm."}, i) for i in range(20)}) == 7


def test_numbers_and_free_answers() -> None:
    stsb, squad = FLAN["flan:stsb"], FLAN["flan:squad_v2"]
    assert [stsb.target({"label": x}) for x in (0.0, 2.5, 3.5, 4.6)] == ["0", "2", "4", "5"] and stsb.read("4", {}) == 4.0
    assert squad.target({"references": []}) == "unanswerable" and squad.accept([]) == ["unanswerable"]  # type: ignore[attr-defined]
    copa = {"premise": "P", "choice1": "A.", "choice2": "B.", "question": "cause", "label": 1}
    choosing = FLAN["flan:copa"]
    assert choosing.target(copa) == "B." and choosing.read("A.", copa) == 0 and choosing.read("C", copa) == -1


def test_places_that_nothing_fills() -> None:
    assert fill("{a} {b}", {"a": "{b}", "b": "x"}) == "{b} x"
    with pytest.raises(NoSuchSetting, match="nothing fills {text}.*Did you mean 'test'"):
        fill("{text}", {"test": "a"})
    assert Template("{a} {options_}").places == {"a", "options_", "answer"}

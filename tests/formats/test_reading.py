"""From tables to texts: which column is which field, which number is which class, and what cannot be used."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.data import read

ASSETS = Path(os.environ.get("THRIFTY_ASSETS", Path(__file__).resolve().parents[3] / "shared" / "assets")) / "data" / "text"


def split(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {"train": rows[:-2], "validation": rows[-2:-1], "test": rows[-1:]}


def nli(**more: Any) -> list[dict[str, Any]]:
    return [{"premise": f"p{i}", "hypothesis": f"h{i}", "label": i % 3, **{k: v[i % 3] for k, v in more.items()}} for i in range(9)]


def test_a_split_in_words() -> None:
    data = read(split(nli()), format="t5:mnli")
    assert data.task == "text-classification" and data.labels == ["entailment", "neutral", "contradiction"]
    assert data.format == "t5:mnli" and data.columns == {"premise": "premise", "hypothesis": "hypothesis", "label": "label"}
    train = data.splits["train"]
    assert train["text"][1] == "mnli hypothesis: h1 premise: p1" and train["target"][1] == "neutral" and train["label"][1] == 1
    assert any("0 is 'entailment'" in note for note in data.record["decisions"])
    assert data.record["format"] == {"name": "t5:mnli", "lessons": 7, "answers": ["entailment", "neutral", "contradiction"]}


def test_classes_go_by_their_names() -> None:
    named = read(split(nli(label_name=["entailment", "contradiction", "Neutral"])), format="t5:mnli")
    assert named.splits["train"]["label"][:3] == [0, 2, 1], "0, 1, 2 are named in another order than the format's"
    written = [{**row, "label": ["Entailment", "NEUTRAL", "contradiction"][row["label"]]} for row in nli()]
    assert read(split(written), format="t5:mnli").splits["train"]["label"][:3] == [0, 1, 2]
    answers = [{**row, "label": ["yes", "it is not possible to tell", "no"][row["label"]]} for row in nli()]
    assert read(split(answers), format="flan:mnli").splits["train"]["label"][:3] == [0, 1, 2]
    truth = [{"passage": f"p{i}", "question": f"q{i}", "label": i % 2 == 0} for i in range(8)]
    assert read(split(truth), format="t5:boolq").splits["train"]["target"][:2] == ["True", "False"]


def test_columns_of_other_names() -> None:
    pairs = [{"sentence1": f"a{i}", "sentence2": f"b{i}", "label": i % 3} for i in range(9)]
    assert read(split(pairs), format="t5:mnli").splits["train"]["text"][0] == "mnli hypothesis: b0 premise: a0"
    reviews = [{"review": f"a film of some length {i}", "stars": i % 2} for i in range(9)]
    told = read(split(reviews), format="t5:sst2", columns={"label": "stars"}).splits["train"]["text"]
    assert told[0] == "sst2 sentence: a film of some length 0"
    odd = [{"x": f"a{i} b c d e f", "y": f"b{i} b c d e f", "label": i % 2} for i in range(9)]
    said = read(split(odd), format="t5:mrpc", columns={"sentence1": "y", "sentence2": "x"})
    assert said.splits["train"]["text"][0] == "mrpc sentence1: b0 b c d e f sentence2: a0 b c d e f"
    with pytest.raises(BadData, match="no column is clearly the sentence1 .*--columns sentence1=NAME"):
        read(split(odd), format="t5:mrpc")
    with pytest.raises(NoSuchSetting, match="t5:mrpc has no field 'sentense1'. Did you mean 'sentence1'"):
        read(split(odd), format="t5:mrpc", columns={"sentense1": "y"})
    with pytest.raises(BadData, match="no column 'z' to be the sentence1"):
        read(split(odd), format="t5:mrpc", columns={"sentence1": "z"})


def test_labels_that_the_format_does_not_have() -> None:
    rows = nli()
    rows[3]["label"], rows[4]["label"] = 7, -1
    said = "(?s)2 rows cannot be used.*train row 4: the label 7 is no class of t5:mnli.*row 5: it has no label"
    with pytest.raises(BadData, match=said):
        read(split(rows), format="t5:mnli")
    data = read(split(rows), format="t5:mnli", skip_bad=True)
    assert len(data.splits["train"]["text"]) == 5 and len(data.record["skipped"]) == 2


def test_schemas_teach_what_is_right_and_judge_all() -> None:
    rows = [{"text": f"Tom saw Bob {i} when he left.", "span1_text": "Tom" if i % 2 else "Bob", "span2_text": "he",
             "span2_index": 5, "label": i % 2} for i in range(12)]
    data = read(split(rows), format="t5:wsc")
    assert data.splits["train"]["label"] == [1] * 5 and set(data.splits["train"]["target"]) == {"Tom"}
    test = data.test()
    assert test["label"] == [1] and test["span1_text"] == ["Tom"] and test["text"] == ["wsc: Tom saw Bob 11 when *he* left."]
    assert any("5 lessons of the 10 training rows" in note for note in data.record["decisions"])
    with pytest.raises(BadData, match="none of the 10 training rows"):
        read(split([{**row, "label": 0} for row in rows[:-2]] + rows[-2:]), format="t5:wsc")
    rows[2]["span2_text"] = "they"
    with pytest.raises(BadData, match="train row 3: the pronoun 'they' does not stand"):
        read(split(rows), format="t5:wsc")


def test_what_is_there_to_judge_only() -> None:
    with pytest.raises(BadData, match="t5:wnli is there to judge by"):
        read(split([{**row, "sentence1": "a", "sentence2": "b"} for row in nli()]), format="t5:wnli")


def test_answers_to_one_question_stay_together() -> None:
    rows = [{"paragraph": f"p{i // 4}", "question": f"q{i // 4}", "answer": f"a{i}", "label": i % 2} for i in range(80)]
    data = read(rows, format="t5:multirc")
    parts = [set(table["group"]) for table in (data.splits["train"], data.splits["validation"], data.test())]
    assert all(parts) and sum(map(len, parts)) == len(set.union(*parts)) == 20


def test_entities_and_answers() -> None:
    rows = [{"passage": f"P{i}", "query": f"q{i} @placeholder", "entities": ["a", "b"], "answers": ["a", "b"][: 1 + i % 2]}
            for i in range(6)]
    data = read(split(rows), format="t5:record")
    assert data.task == "causal-generation" and data.splits["train"]["target"] == ["a", "a", "b", "a", "a", "b"]
    test = data.test()
    assert test["references"] == [["a", "b"]] and test["source"] == ["record query: q5 @placeholder entities: a, b passage: P5"]
    rows[0]["answers"] = []
    with pytest.raises(BadData, match="train row 1: it has no answer"):
        read(split(rows), format="t5:record")
    nested = [{"question": f"Who{i}?", "context": "It is.", "answers": {"text": ["It"], "answer_start": [0]}} for i in range(5)]
    assert read(split(nested), format="t5:squad").splits["train"]["references"][0] == ["It"]
    open_ = [{**row, "answers": {"text": [], "answer_start": []}} for row in nested]
    assert read(split(open_), format="flan:squad_v2").splits["train"]["target"][0] == "unanswerable"


def test_choices_of_each_row() -> None:
    rows = [{"question": f"q{i}?", "choices": [f"a{i}", f"b{i}", f"c{i}"], "answer": "ABC"[i % 3]} for i in range(14)]
    data = read(split(rows), format="flan:arc:0")
    assert data.task == "multiple-choice" and data.splits["train"]["label"][:3] == [0, 1, 2]
    assert data.splits["train"]["target"][:3] == ["a0", "b1", "c2"]
    assert data.splits["train"]["text"][1] == "q1?\n\nOPTIONS:\n- a1\n- b1\n- c1"
    copa = [{"premise": f"p{i}", "choice1": "x", "choice2": f"y{i}", "question": "cause", "label": i % 2} for i in range(9)]
    assert read(split(copa), format="flan:copa").splits["validation"]["choices"] == [["x", "y7"]]


def test_a_text_of_ones_own_finds_out_what_it_is_for() -> None:
    rows = [{"text": f"some words here {i}", "label": ["good", "bad"][i % 2]} for i in range(9)]
    data = read(split(rows), format="{text} Well?", words={"bad": "no"})
    assert data.labels == ["bad", "good"] and data.splits["train"]["target"][:2] == ["good", "no"]
    assert data.splits["train"]["text"][0] == "some words here 0 Well?" and data.words == {"bad": "no"}
    numbers = [{"text": f"some words here {i}", "score": i + 0.5} for i in range(9)]
    assert read(split(numbers), format="{text}", columns={"label": "score"}).task == "regression"
    with pytest.raises(BadData, match="no column is clearly the review"):
        read(split(rows), format="{review} Well?")
    with pytest.raises(NoSuchSetting, match="class 'ugly'"):
        read(split(rows), format="{text} Well?", words={"ugly": "no"})
    pairs = [{"source": f"s{i}", "target": f"t{i}"} for i in range(9)]
    written = read(split(pairs), format="summarize: {source}", task="seq2seq-generation")
    assert written.task == "seq2seq-generation" and written.splits["train"]["source"][0] == "summarize: s0"
    assert written.splits["train"]["target"][0] == "t0"


REAL = {"t5:cola": "glue_cola", "t5:mrpc": "glue_mrpc", "t5:stsb": "glue_stsb", "t5:rte": "glue_rte", "t5:cb": "superglue_cb",
        "t5:copa": "superglue_copa", "t5:wsc": "superglue_wsc", "t5:superglue-rte": "superglue_rte", "t5:boolq": "superglue_boolq",
        "flan:cb": "superglue_cb", "flan:copa": "superglue_copa", "flan:arc": "arc_challenge", "flan:classify": "trec"}


@pytest.mark.parametrize("name", REAL)
def test_real_sets(name: str) -> None:
    pytest.importorskip("pyarrow")
    if not (ASSETS / REAL[name]).is_dir():
        pytest.skip(f"no set {REAL[name]} in {ASSETS}")
    data = read(ASSETS / REAL[name], format=name, allow_leak=True, skip_bad=name == "flan:arc")  # some of its choices are empty
    test = data.test()
    from thrifty import formats

    format = formats.find(name, task=data.task, labels=data.labels)
    rows = [dict(zip(test, values, strict=True)) for values in zip(*test.values(), strict=True)]
    for row in rows:
        if name in ("t5:wsc", "t5:stsb"):
            continue
        assert format.read(row["target"], row) == row["label"]
    if name == "t5:stsb":
        assert max(abs(format.read(row["target"], row) - row["label"]) for row in rows) <= 0.1 + 1e-6


def test_real_schemas_are_all_but_a_few_starred() -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    if not (ASSETS / "glue_wnli").is_dir():
        pytest.skip(f"no set glue_wnli in {ASSETS}")
    from thrifty.formats import Unwritable, find

    format, lost, rows = find("t5:wnli"), 0, 0
    for part in ("train", "validation"):
        for row in pq.read_table(ASSETS / "glue_wnli" / f"{part}.parquet").to_pylist():
            rows += 1
            try:
                assert format.write(row).count("*") == 2 and format.target(row)
            except Unwritable:
                lost += 1
    assert rows == 706 and lost <= 12

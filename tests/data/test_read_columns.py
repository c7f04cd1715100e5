"""Roles and tasks: guessed where one reading exists, otherwise an error that shows how to say it."""
from __future__ import annotations

import json

import pytest

from thrifty.core.errors import BadData
from thrifty.data import read

N = 40


def sentences(word):
    return [f"the {word} sentence of item {i} in this list" for i in range(N)]


def classes(count=2):
    return [i % count for i in range(N)]


@pytest.mark.parametrize("first, second", [
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question", "sentence"), ("text_a", "text_b"),
    ("text", "text_pair"), ("question1", "question2"), ("passage", "question"),
])  # fmt: skip
def test_known_pairs_of_texts(first, second):
    table = {second: sentences("b"), "idx": list(range(N)), "label": classes(), first: sentences("a")}
    data = read(table)
    assert data.columns == {"text": first, "text_pair": second, "label": "label"}
    assert data.task == "text-classification" and data.record["ignored"] == ["idx"]
    assert set(data.splits["train"]) == {"text", "text_pair", "label"}


def test_two_texts_that_are_no_known_pair_must_be_said():
    table = {"title": sentences("a"), "body": sentences("b"), "label": classes()}
    with pytest.raises(BadData) as caught:
        read(table)
    assert "['title', 'body']" in str(caught.value)
    assert 'columns={"text": "title"}' in str(caught.value) and "--columns text=title" in str(caught.value)
    assert read(table, columns={"text": "body"}).columns == {"text": "body", "label": "label"}
    both = read(table, columns={"text": "title", "text_pair": "body"})
    assert both.columns == {"text": "title", "text_pair": "body", "label": "label"}


def test_a_label_by_another_name_needs_to_be_the_only_candidate():
    table = {"utterance": sentences("a"), "intent": [f"intent {i % 4}" for i in range(N)], "user_id": classes(7)}
    assert read(table).columns == {"text": "utterance", "label": "intent"}
    table["mood"] = classes(3)
    with pytest.raises(BadData, match=r"2 columns could be the label: \['intent', 'mood'\].*--columns label=intent"):
        read(table)
    table["label"] = classes(3)
    assert read(table).columns["label"] == "label"


def test_unknown_columns_and_double_roles():
    table = {"review": sentences("a"), "stars": classes(5)}
    with pytest.raises(BadData, match="Did you mean 'review'"):
        read(table, columns={"text": "reviews"})
    with pytest.raises(BadData, match="two roles"):
        read(table, columns={"text": "review", "label": "review"})
    with pytest.raises(BadData, match="no task has the roles"):
        read(table, columns={"text": "review", "target": "stars"})
    with pytest.raises(BadData, match="has no role"):
        read(table, task="regression", columns={"target": "stars"})


def test_regression_by_decimal_labels():
    scores = [i / 8 for i in range(N)]
    data = read({"sentence1": sentences("a"), "sentence2": sentences("b"), "label": scores, "genre": ["news"] * N})
    assert data.task == "regression" and data.labels is None and "decimal" in data.record["task_why"]
    seen = data.splits["train"]["label"] + data.splits["validation"]["label"] + data.test()["label"]
    assert sorted(seen) == scores and all(isinstance(value, float) for value in seen)
    written = read({"text": sentences("a"), "label": [f"{score}" for score in scores]})
    assert written.task == "regression"
    asked = read({"text": sentences("a"), "label": classes(5)}, task="regression")
    assert asked.task == "regression" and "asked" in asked.record["task_why"]
    assert set(asked.splits["train"]["label"]) == {0.0, 1.0, 2.0, 3.0, 4.0}


def test_a_label_that_may_be_a_class_or_a_number_must_be_said():
    with pytest.raises(BadData, match="--task"):
        read({"text": sentences("a"), "label": [float(value) for value in classes()]})
    data = read({"text": sentences("a"), "label": [float(value) for value in classes()]}, task="text-classification")
    assert data.labels == ["0", "1"]
    many = {"text": [f"text number {i}" for i in range(400)], "label": list(range(400))}
    with pytest.raises(BadData, match="400 different whole numbers"):
        read(many)


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf", "much", "", None])
def test_regression_targets_must_be_finite_numbers(bad):
    table = {"text": sentences("a"), "label": [i / 8 for i in range(N)]}
    table["label"][3] = bad
    with pytest.raises(BadData, match="table row 4: the label"):
        read(table)
    data = read(table, skip_bad=True)
    assert data.task == "regression" and sum(data.record["rows"].values()) == N - 1
    assert data.record["skipped"][0]["row"] == 4


@pytest.mark.parametrize("bad", ["", "   ", "\n\t", None, 7, "half \ud800 here"])
def test_texts_must_say_something(bad):
    table = {"text": sentences("a"), "label": classes()}
    table["text"][0] = bad
    with pytest.raises(BadData, match="table row 1: the text"):
        read(table)
    assert sum(read(table, skip_bad=True).record["rows"].values()) == N - 1


def test_ten_faults_are_spelled_out_and_the_rest_counted():
    table = {"text": sentences("a"), "label": [None if i < 25 else i % 2 for i in range(N)]}
    with pytest.raises(BadData) as caught:
        read(table)
    message = str(caught.value)
    assert "25 rows cannot be used" in message and "table row 10:" in message and "table row 11:" not in message
    assert "and 15 more" in message


def test_tokens_and_tags():
    tokens = [["Ann", "lives", "in", f"Town{i}"] for i in range(N)]
    tags = [["B-PER", "O", "O", "B-LOC"] for _ in range(N)]
    data = read({"tokens": tokens, "ner_tags": tags, "lang": ["en", "fr"] * (N // 2)})
    assert data.task == "token-classification" and data.labels == ["B-LOC", "B-PER", "O"]
    assert data.columns == {"tokens": "tokens", "tags": "ner_tags"}
    assert all(row == [1, 2, 2, 0] for row in data.splits["train"]["tags"])
    with pytest.raises(BadData, match=r"2 columns could be the tags: \['ner_tags', 'heads'\]"):
        read({"tokens": tokens, "ner_tags": tags, "heads": [[0, 1, 2, 3]] * N})
    tags[5] = ["O"]
    with pytest.raises(BadData, match="table row 6: has 4 tokens but 1 tags"):
        read({"tokens": tokens, "ner_tags": tags})


def test_tokens_beside_the_text_they_come_from():
    data = read({"text": sentences("a"), "tokens": [text.split() for text in sentences("a")], "label": classes()})
    assert data.task == "text-classification" and data.record["ignored"] == ["tokens"]


def test_tokens_in_csv_as_json_lists(tmp_path):
    lines = ["tokens,tags"] + [f'"[""a"", ""w{i}""]","[""X"", ""Y""]"' for i in range(N)]
    (tmp_path / "data.csv").write_text("\n".join(lines))
    data = read(tmp_path / "data.csv")
    assert data.task == "token-classification" and data.splits["train"]["tokens"][0][0] == "a"


CHOICES = [[f"red {i}", f"green {i}", f"blue {i}"] for i in range(N)]


@pytest.mark.parametrize("write", [
    lambda i: i % 3, lambda i: str(i % 3), lambda i: "ABC"[i % 3], lambda i: "abc"[i % 3], lambda i: CHOICES[i][i % 3],
    lambda i: i % 3 + 1, lambda i: "A23"[i % 3],
])  # fmt: skip
def test_answers_in_every_writing(write):
    table = {"question": sentences("a"), "choices": CHOICES, "answer": [write(i) for i in range(N)], "id": list(range(N))}
    data = read(table)
    assert data.task == "multiple-choice"
    assert data.columns == {"text": "question", "choices": "choices", "label": "answer"}
    for split in (data.splits["train"], data.splits["validation"], data.test()):
        for choices, answer in zip(split["choices"], split["label"], strict=True):
            assert answer == int(choices[0].split()[1]) % 3
    assert any("the answer was read as" in note for note in data.record["decisions"])


def test_choices_in_columns_of_their_own():
    table = {"premise": sentences("a"), "choice1": sentences("b"), "choice2": sentences("c"), "label": classes()}
    data = read(table)
    assert data.columns == {"text": "premise", "choices": "choice1,choice2", "label": "label"}
    assert data.splits["train"]["choices"][0][0].startswith("the b") and set(data.splits["train"]["label"]) == {0, 1}
    renamed = {"start": sentences("a"), "left": sentences("b"), "right": sentences("c"), "label": classes()}
    said = read(renamed, columns={"text": "start", "choices": "left,right"})
    assert said.task == "multiple-choice" and said.record["columns"]["choices"] == "left,right"
    arc = {"question": sentences("a"), "answerKey": ["A", "B"] * (N // 2),
           "choices": [{"text": ["x", "y"], "label": ["A", "B"]}] * N}  # fmt: skip
    assert read(arc).splits["train"]["choices"][0] == ["x", "y"]


def test_answers_outside_the_choices():
    table = {"question": sentences("a"), "choices": CHOICES, "answer": classes(3)}
    table["answer"][9] = 5
    with pytest.raises(BadData, match="table row 10: the answer 5 is none of the choices"):
        read(table)
    numbers = {"question": sentences("a"), "choices": [["1", "0", "2"]] * N, "answer": [str(i % 2) for i in range(N)]}
    with pytest.raises(BadData, match="as the choice itself, and these differ"):
        read(numbers)
    with pytest.raises(BadData, match="only one choice"):
        read({"question": sentences("a"), "choices": [["x"]] * N, "answer": [0] * N})


@pytest.mark.parametrize("source, target", [("question", "answer"), ("prompt", "completion"), ("document", "summary"),
                                            ("source", "target"), ("mr", "ref"), ("text", "summary")])  # fmt: skip
def test_generation(source, target):
    data = read({source: sentences("a"), target: sentences("b"), "final": classes(9)})
    assert data.task == "causal-generation" and data.columns == {"source": source, "target": target}
    again = read({source: sentences("a"), target: sentences("b")}, generation="seq2seq-generation")
    assert again.task == "seq2seq-generation" and again.labels is None


def test_generation_with_references_and_with_two_sources():
    refs = [[f"first {i}", f"second {i}"] for i in range(N)]
    data = read({"source": sentences("a"), "refs": refs, "category": ["a", "b"] * (N // 2)})
    train = data.splits["train"]
    assert train["target"] == [group[0] for group in train["references"]] and train["references"][0] in refs
    assert data.columns == {"source": "source", "target": "refs", "references": "refs"}
    alpaca = {"instruction": sentences("a"), "input": sentences("b"), "output": sentences("c")}
    with pytest.raises(BadData, match=r"\['instruction', 'input'\]"):
        read(alpaca)
    assert read(alpaca, columns={"source": "instruction"}).columns == {"source": "instruction", "target": "output"}


def test_nothing_to_learn():
    with pytest.raises(BadData, match="cannot tell what to learn"):
        read({"text": sentences("a")})
    with pytest.raises(BadData, match="nothing to tell apart"):
        read({"text": sentences("a"), "label": ["same"] * N})


def test_columns_that_are_blank_throughout():
    with pytest.raises(BadData, match="40 rows cannot be used"):
        read({"text": sentences("a"), "label": [None] * N})
    with pytest.raises(BadData, match="40 rows cannot be used"):
        read({"text": [""] * N, "label": classes()})
    with pytest.raises(BadData, match="no row of the given table is usable"):
        read({"text": [""] * N, "label": classes()}, skip_bad=True)


def test_label_space_in_numeric_order_and_named():
    numbers = read({"text": sentences("a"), "label": [str(value) for value in classes(11)]}, fractions=(0.4, 0.3, 0.3))
    assert numbers.labels == [str(value) for value in range(11)]
    named = {"text": sentences("a"), "label": classes(3), "label_name": [("zebra", "ape", "cat")[v] for v in classes(3)]}
    assert read(named).labels == ["zebra", "ape", "cat"]
    named["label_name"][0] = "ape"
    loose = read(named)
    assert loose.labels == ["0", "1", "2"] and "one to one" in " ".join(loose.record["decisions"])


def test_class_names_from_parquet_metadata(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    features = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": ["no", "yes"], "_type": "ClassLabel"}}
    table = pa.table({"text": sentences("a"), "label": classes()})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, tmp_path / "data.parquet")
    assert read(tmp_path / "data.parquet").labels == ["no", "yes"]


def test_labels_that_training_does_not_have():
    splits = {"train": {"text": sentences("a"), "label": ["x", "y"] * (N // 2)},
              "test": {"text": sentences("b"), "label": ["x", "z"] * (N // 2)}}  # fmt: skip
    for skip in (False, True):
        with pytest.raises(BadData, match=r"(?s)20 labels do not occur.*test row 2: 'z'.*and 10 more"):
            read(splits, skip_bad=skip)
    del splits["test"]["label"]
    with pytest.raises(BadData, match="test has no column 'label'"):
        read(splits)


def test_a_test_split_without_labels_is_left_out_and_said():
    labels = {"train": classes(), "validation": classes(), "test": [-1] * N}
    data = read({split: {"text": sentences(split), "label": column} for split, column in labels.items()})
    assert data.splits["validation"]["text"][0].startswith("the train") and data.test()["text"][0].startswith("the val")
    assert any("left out: it has no labels" in note for note in data.record["decisions"])

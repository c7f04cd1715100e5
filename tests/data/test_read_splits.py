"""Splits, leaks, the door of the test split, and sampling."""
from __future__ import annotations

import collections
import json

import pytest

from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.data import Dataset, few, read


def table(count, classes=2, start=0):
    texts = [f"text number {i} here" for i in range(start, start + count)]
    return {"text": texts, "label": [i % classes for i in range(count)]}


def sides(data):
    return {"train": data.splits["train"], "validation": data.splits["validation"], "test": data.test()}


def test_carving_is_stratified_and_seeded():
    labels = ["many"] * 700 + ["some"] * 90 + ["few"] * 3
    source = {"text": [f"text number {i} here" for i in range(793)], "label": labels}
    first, again, other = sides(read(source)), sides(read(source)), sides(read(source, seed=1))
    assert first == again and first["test"] != other["test"]
    counts = {split: collections.Counter(rows["label"]) for split, rows in first.items()}
    assert counts == {"train": {1: 560, 2: 72, 0: 1}, "validation": {1: 70, 2: 9, 0: 1}, "test": {1: 70, 2: 9, 0: 1}}
    assert sorted(text for rows in first.values() for text in rows["text"]) == sorted(source["text"])


def test_a_class_too_small_to_carve_is_named():
    source = table(30)
    source["label"][0] = source["label"][1] = 7
    with pytest.raises(BadData, match="the class '7' has 2"):
        read(source)
    copies = {"text": ["same text here"] * 9 + [f"text number {i}" for i in range(9)], "label": ["a"] * 9 + ["b"] * 9}
    with pytest.raises(BadData, match="the class 'a' has 1"):
        read(copies)


def test_train_and_validation_given():
    data = read({"train": table(90), "dev": table(20, start=90)})
    assert data.record["rows"] == {"train": 80, "validation": 10, "test": 20}
    assert any("the given validation split is the test split; a selection split was carved out of train" in note
               for note in data.record["decisions"])  # fmt: skip
    assert data.test() == table(20, start=90)


def test_train_and_test_given():
    data = read({"train": table(90), "test": table(20, start=90)})
    assert data.record["rows"] == {"train": 80, "validation": 10, "test": 20} and data.test() == table(20, start=90)
    assert any("a validation split was carved" in note for note in data.record["decisions"])


def test_no_train_split():
    with pytest.raises(BadData, match="there is no train split, only test and validation"):
        read({"validation": table(20), "test": table(20, start=50)})


def test_the_test_split_is_read_once():
    data = read(table(60))
    assert data.test_rows == 6 and sorted(data.splits) == ["train", "validation"]
    for ask in (lambda: data.splits["test"], lambda: data.splits.get("test"), lambda: data.splits["dev"]):
        with pytest.raises(BadData, match="test"):
            ask()
    assert len(data.test()["text"]) == data.test_rows == 6
    with pytest.raises(BadData, match="read once, at the end"):
        data.test()
    made = Dataset({"train": table(4), "validation": table(4)}, {"text": "text"}, "text-classification", ["a", "b"])
    assert made.test_rows == 0
    with pytest.raises(BadData, match="no test split"):
        made.test()


def test_leaks_are_refused_with_both_places():
    train, test = table(60), table(20, start=60)
    test["text"][4] = "  text\tnumber 7   here "
    test["text"][9] = train["text"][11]
    with pytest.raises(BadData) as caught:
        read({"train": train, "test": test})
    assert "2 pairs" in str(caught.value)
    assert "train row 8 and test row 5" in str(caught.value) and "train row 12 and test row 10" in str(caught.value)
    data = read({"train": train, "test": test}, allow_leak=True)
    leaks = data.record["leaks"]
    assert leaks["pairs"] == 2 and leaks["allowed"] and ["train row 8", "test row 5"] in leaks["examples"]
    assert sum(leaks["rows"].values()) == 2


def test_leaks_see_through_unicode_composition_and_stop_at_ten():
    train = table(60)
    train["text"][0] = "caf\u00e9 open"
    with pytest.raises(BadData, match="1 pair of rows"):
        read({"train": train, "test": {"text": ["cafe\u0301 open", "other words"], "label": [0, 1]}})
    with pytest.raises(BadData, match=r"(?s)30 pairs.*and 20 more"):
        read({"train": train, "test": {"text": train["text"][10:40], "label": [0, 1] * 15}})


def test_pairs_of_texts_leak_only_together():
    def pairs(second):
        return {"premise": [f"premise number {i}" for i in range(30)], "hypothesis": [f"{second} {i}" for i in range(30)],
                "label": [i % 2 for i in range(30)]}  # fmt: skip

    assert read({"train": pairs("so"), "test": pairs("but")}).record["leaks"]["pairs"] == 0
    with pytest.raises(BadData, match="30 pairs"):
        read({"train": pairs("so"), "test": pairs("so")})


def test_carving_keeps_copies_on_one_side():
    source = table(300, classes=3)
    source["text"] = [f"text number {i // 5} here" for i in range(300)]
    data = read(source, fractions=(0.6, 0.2, 0.2))
    assert data.record["leaks"]["pairs"] == 0 and sum(data.record["duplicates"].values()) == 240
    found = {split: set(rows["text"]) for split, rows in sides(data).items()}
    assert not found["train"] & found["test"] and not found["train"] & found["validation"] and len(found["test"]) >= 10
    assert sum(data.record["rows"].values()) == 300


def test_limit_draws_from_train_only():
    full, part = read(table(100)), read(table(100), limit=25)
    assert part.record["rows"] == {"train": 25, "validation": 10, "test": 10}
    assert part.record["limit"] == {"limit": 25, "of": 80, "seed": 0}
    assert set(part.splits["train"]["text"]) < set(full.splits["train"]["text"])
    assert part.splits["validation"] == full.splits["validation"]
    assert read(table(100), limit=25).splits["train"] == part.splits["train"]
    assert read(table(100), limit=1000).record["rows"]["train"] == 80


def test_few_of_every_class():
    rows = table(60, classes=4)
    drawn = few(rows, 3, seed=5)
    assert collections.Counter(drawn["label"]) == {0: 3, 1: 3, 2: 3, 3: 3}
    assert set(zip(drawn["text"], drawn["label"], strict=True)) <= set(zip(rows["text"], rows["label"], strict=True))
    assert drawn == few(rows, 3, seed=5) != few(rows, 3, seed=6)
    with pytest.raises(BadData, match="fewer"):
        few(rows, 16)
    with pytest.raises(BadData, match="class indices"):
        few({"text": ["a"], "label": [0.5]}, 1)
    with pytest.raises(NoSuchSetting):
        few(rows, 0)


def test_the_record_is_plain_json_and_depends_on_the_content():
    one, two = read(table(60)), read(table(60, start=1))
    assert json.loads(json.dumps(one.record)) == one.record
    assert one.record["content"] != two.record["content"] and one.record["content"] == read(table(60)).record["content"]
    assert one.record["task_why"].startswith("text-classification because") and one.record["seed"] == 0


def test_shots():
    full, drawn = read(table(200, classes=4)), read(table(200, classes=4), shots=6)
    assert collections.Counter(drawn.splits["train"]["label"]) == {0: 6, 1: 6, 2: 6, 3: 6}
    assert collections.Counter(drawn.splits["validation"]["label"]) == {0: 4, 1: 4, 2: 4, 3: 4}
    assert drawn.splits["train"] == few(full.splits["train"], 6) and drawn.test() == full.test()
    assert any("6 rows of every class" in note and "4" in note for note in drawn.record["decisions"])
    small = read(table(40, classes=4), shots=2)
    assert collections.Counter(small.splits["validation"]["label"]) == {0: 1, 1: 1, 2: 1, 3: 1}
    for wrong in ({"shots": 0}, {"shots": True}, {"shots": 2, "limit": 10}):
        with pytest.raises(NoSuchSetting, match="shots"):
            read(table(200, classes=4), **wrong)
    with pytest.raises(BadData, match="50 rows of every class"):
        read(table(200, classes=4), shots=50)


def test_a_column_says_which_split_a_row_belongs_to(tmp_path):
    rows = {**table(30), "Split": ["train"] * 20 + ["dev"] * 4 + ["test"] * 6}
    found = sides(read(rows))
    assert {split: len(part["text"]) for split, part in found.items()} == {"train": 20, "validation": 4, "test": 6}
    assert found["test"]["text"] == rows["text"][24:] and set(found["train"]) == {"text", "label"}
    file = tmp_path / "rows.csv"
    file.write_text("text,label,split\n" + "".join(f"text {i},{'ab'[i % 2]},{'train' if i < 20 else 'test'}\n" for i in range(26)))
    data = read(file)
    assert len(data.test()["text"]) == 6 and sum(len(part["text"]) for part in data.splits.values()) == 20
    assert any("the column 'split' says" in note for note in data.record["decisions"])
    rows["text"][25] = rows["text"][0]
    with pytest.raises(BadData, match="row 1 and .* row 26"):
        read(rows)


def test_a_column_called_split_may_mean_something_else():
    other = {**table(30), "split": ["upper", "lower"] * 15}
    assert read(other).record["rows"] == read(table(30)).record["rows"]
    with pytest.raises(BadData, match=r"in 1 rows it names none: .*row 3: 'tset'.*Did you mean 'test'"):
        read({**table(30), "split": ["train", "test", "tset"] + ["train"] * 27})
    asked = read({"text": table(30)["text"], "split": ["train", "test"] * 15}, columns={"label": "split"})
    assert asked.labels == ["test", "train"]

"""Several datasets as one: each read on its own, errors that name the task, one door to all test splits."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from thrifty.core.errors import BadData, NoSuchSetting, Unfit
from thrifty.data import Dataset, Several, is_several, read, read_several
from thrifty.data.several import columns_of, each

ANIMALS = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "kea", "lynx"]


def rows(prefix: str, labels: tuple[Any, ...]) -> dict[str, list[dict[str, Any]]]:
    made = [{"text": f"{prefix} {one} {two}", "label": labels[(i + j) % len(labels)]}
            for i, one in enumerate(ANIMALS) for j, two in enumerate(ANIMALS)]
    return {"train": made[:40], "validation": made[40:60], "test": made[60:70]}


def sets() -> dict[str, Any]:
    return {"pets": rows("pet", ("cat", "dog")), "mood": rows("mood", ("bad", "fair", "good"))}


def both(**more: Any) -> Several:
    return read_several(sets(), lambda name, source: read(source, **more))


def test_each_is_read_on_its_own() -> None:
    data = both()
    assert data.kinds == {"pets": "text-classification", "mood": "text-classification"}
    assert data.labels == {"pets": ["cat", "dog"], "mood": ["bad", "fair", "good"]}
    assert data.columns == {name: {"text": "text", "label": "label"} for name in ("pets", "mood")}
    train = data.splits["train"]
    assert train["task"] == ["pets"] * 40 + ["mood"] * 40
    alone = read(sets()["mood"]).splits["train"]
    assert train["row"][40:] == [{"text": text, "label": label} for text, label in zip(alone["text"], alone["label"], strict=True)]
    assert data.record["rows"] == {"train": 80, "validation": 40, "test": 20}
    assert data.record["tasks"]["mood"]["labels"] == ["bad", "fair", "good"]
    assert data.record["content"]["pets"] == read(sets()["pets"]).record["content"]


def test_the_door_to_the_test_splits_opens_once() -> None:
    data = both()
    assert data.test_rows == 20
    with pytest.raises(BadData, match="read once"):
        data.splits["test"]
    table = data.test()
    assert table["task"] == ["pets"] * 10 + ["mood"] * 10 and table["row"][0]["text"].startswith("pet ")
    with pytest.raises(BadData, match="already read"):
        data.test()


def test_texts_that_train_one_task_and_test_another_are_told() -> None:
    assert both().record["overlap"] == []
    given = sets()
    given["mood"]["test"] += [{**row, "label": "bad"} for row in given["pets"]["train"][:3]]
    given["mood"]["test"][-1]["text"] = given["mood"]["test"][-1]["text"].replace(" ", "  ")  # white space tells nothing apart
    data = read_several(given, lambda name, source: read(source))
    assert data.record["overlap"] == [{"task": "mood", "other": "pets", "rows": 3}] and data.test_rows == 23
    assert len(data.test()["row"]) == 23


def test_what_is_one_dataset_and_what_several(tmp_path: Path) -> None:
    one, table = rows("a", (0, 1)), {"text": ["a", "b"], "label": [0, 1]}
    dataset = Dataset({"train": table}, {}, "text-classification", ["x", "y"])
    for source in ("cityline", tmp_path, one, table, one["train"], {"train": one["train"]}, {}, {"tain": one["train"]},
                   {"train": table, "test": table}, {"text": ["a"], "label": "x"}, None):
        assert not is_several(source), source
    for source in ({"a": "cityline", "b": tmp_path}, {"a": one, "b": "x.csv"}, {"a": dataset}, {"a": table, "b": one["train"]},
                   {"train": "a.csv", "test": "b.csv"}):
        assert is_several(source), source


@pytest.mark.parametrize("name", ["", "a.b", "a b", "-a", 3, "rte/x"])
def test_names_that_tasks_cannot_have(name: Any) -> None:
    with pytest.raises(NoSuchSetting, match="a task's name is letters"):
        read_several({name: "cityline"}, lambda task, source: read(source))


def test_splits_are_no_tasks() -> None:
    with pytest.raises(NoSuchSetting, match="'train' is the name of a split, not of a task"):
        read_several({"train": "a.csv", "test": "b.csv"}, lambda task, source: read(source))


def test_a_dataset_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"^task 'mood': there is no file or folder"):
        read_several({"pets": sets()["pets"], "mood": str(tmp_path / "none.csv")}, lambda task, source: read(source))
    leaking = sets()
    leaking["mood"]["test"].append(leaking["mood"]["train"][0])
    with pytest.raises(BadData, match="^task 'mood': "):
        read_several(leaking, lambda task, source: read(source))


def test_settings_by_task() -> None:
    names = ["rte", "stsb"]
    assert each("accuracy", names, "metric") == {"rte": "accuracy", "stsb": "accuracy"}
    assert each({"stsb": "spearman"}, names, "metric") == {"rte": None, "stsb": "spearman"}
    with pytest.raises(NoSuchSetting, match="metric speaks of a task 'sstb'.*Did you mean 'stsb'"):
        each({"sstb": "spearman"}, names, "metric")
    told = {"label": "y", "rte.text": "premise", "stsb": {"text": "sentence"}}
    assert columns_of(told, names) == {"rte": {"label": "y", "text": "premise"}, "stsb": {"label": "y", "text": "sentence"}}
    with pytest.raises(NoSuchSetting, match="columns speaks of a task 'ret'"):
        columns_of({"ret.text": "premise"}, names)


def tagged(words: str, tags: str) -> dict[str, list[str]]:
    return {"tokens": words.split(), "tags": tags.split()}


def languages() -> dict[str, dict[str, list[dict[str, list[str]]]]]:
    en = [tagged(f"a{i} b{i} c{i}", "DET NOUN X") for i in range(4)]
    it = [tagged(f"d{i} e{i}", "NOUN INTJ") for i in range(4)]
    return {name: {"train": rows[:2], "validation": rows[2:3], "test": rows[3:]} for name, rows in (("en", en), ("it", it))}


def test_one_head_numbers_the_classes_of_all_datasets_alike() -> None:
    found = read_several(languages(), lambda name, source: read(source), one_head=True)
    assert found.parts["en"].labels == found.parts["it"].labels == ["DET", "NOUN", "X", "INTJ"]
    assert found.labels == {"en": ["DET", "NOUN", "X", "INTJ"], "it": ["DET", "NOUN", "X", "INTJ"]}
    assert [found.parts[name].splits["train"]["tags"] for name in ("en", "it")] == [[[0, 1, 2]] * 2, [[1, 3]] * 2]
    assert [row["tags"] for row in found.test()["row"]] == [[0, 1, 2], [1, 3]]
    assert found.parts["it"].record["labels"] == ["DET", "NOUN", "X", "INTJ"]
    assert "one head for all: none of these rows is of DET, X." in found.parts["it"].record["decisions"]


def test_without_one_head_every_dataset_keeps_its_own_numbers() -> None:
    found = read_several(languages(), lambda name, source: read(source))
    assert found.labels == {"en": ["DET", "NOUN", "X"], "it": ["INTJ", "NOUN"]}


def test_one_head_refuses_classes_that_have_nothing_in_common() -> None:
    rows = {"en": ("good", "bad"), "fr": ("bon", "mauvais")}
    data = {name: {split: [{"text": f"{name} {split} {i} {w}", "label": w} for i in range(2) for w in words]
                   for split in ("train", "validation", "test")} for name, words in rows.items()}
    with pytest.raises(Unfit, match="one_head: task 'en' has no class in common .*: its classes are .*bad.*, theirs .*bon"):
        read_several(data, lambda name, source: read(source), one_head=True)

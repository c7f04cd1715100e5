"""Every kind of table, as people write them, and each way in which a table can be broken."""
from __future__ import annotations

import csv
import hashlib
import json

import numpy
import pytest

from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.data import read

TOPICS = ("bus", "park", "tax")


def rows(count=60, start=0):
    """Distinct sentences, their topic in turn."""
    numbers = range(start, start + count)
    return [{"text": f"number {i} asks about the {TOPICS[i % 3]} again", "label": TOPICS[i % 3]} for i in numbers]


def write_csv(path, records, separator=","):
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, records[0].keys(), delimiter=separator)
        writer.writeheader()
        writer.writerows(records)


def write_parquet(path, records):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(records), path)


def write(path, records):
    if path.suffix in (".csv", ".tsv"):
        write_csv(path, records, "\t" if path.suffix == ".tsv" else ",")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    else:
        write_parquet(path, records)
    return path


def texts(data):
    """All texts of all splits; opens the test split."""
    return data.splits["train"]["text"] + data.splits["validation"]["text"] + data.test()["text"]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_one_file_of_each_format_holds_the_same_rows(tmp_path, suffix):
    path = write(tmp_path / f"data.{suffix}", rows())
    data = read(path)
    assert data.task == "text-classification" and data.labels == list(TOPICS)
    assert data.columns == {"text": "text", "label": "label"}
    assert data.record["rows"] == {"train": 48, "validation": 6, "test": 6}
    assert data.record["files"] == [{"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "rows": 60}]
    train = data.splits["train"]
    assert all(data.labels[label] in text for text, label in zip(train["text"], train["label"], strict=True))
    assert sorted(texts(data)) == sorted(row["text"] for row in rows())


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
@pytest.mark.parametrize("names", [("train", "validation", "test"), ("train", "dev", "test"), ("TRAIN", "val", "testing")])
def test_a_folder_of_split_files(tmp_path, suffix, names):
    for name, start, count in zip(names, (0, 60, 90), (60, 30, 30), strict=True):
        write(tmp_path / f"{name}.{suffix}", rows(count, start))
    (tmp_path / "README.md").write_text("words")
    data = read(tmp_path)
    assert data.record["rows"] == {"train": 60, "validation": 30, "test": 30}
    assert data.splits["train"]["text"] == [row["text"] for row in rows()]
    assert "README.md" in " ".join(data.record["decisions"])


def test_parquet_shards_are_joined_in_order_and_none_may_be_missing(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train-00001-of-00002.parquet", rows(30, 30))
    write(folder / "train-00000-of-00002.parquet", rows(30))
    write(folder / "test-00000-of-00001.parquet", rows(9, 60))
    data = read(tmp_path, fractions=(0.5, 0.25, 0.25))
    seen = data.splits["train"]["text"] + data.splits["validation"]["text"]
    assert sorted(seen) == sorted(row["text"] for row in rows()) and data.test_rows == 9
    (folder / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(BadData, match=r"shards \[1\] of 2 are missing"):
        read(tmp_path)


def test_json_may_hold_columns_or_splits_or_lines(tmp_path):
    by_column = {"text": [row["text"] for row in rows()], "label": [row["label"] for row in rows()]}
    path = tmp_path / "data.json"
    for value in (by_column, {"data": rows()}):
        path.write_text(json.dumps(value))
        assert sum(read(path).record["rows"].values()) == 60
    path.write_text(json.dumps({"train": rows(), "dev": rows(9, 60), "test": rows(12, 69)}))
    assert read(path).record["rows"] == {"train": 60, "validation": 9, "test": 12}
    path.write_text("\n".join(map(json.dumps, rows())))
    assert sum(read(path).record["rows"].values()) == 60
    for broken in ("[" * 100_000, '{"text": 1}', "[1, 2", '"words"'):
        path.write_text(broken)
        with pytest.raises(BadData, match=r"data\.json"):
            read(path)


def test_python_tables(tmp_path):
    by_column = {"text": [row["text"] for row in rows()], "label": [row["label"] for row in rows()]}
    for source in (rows(), by_column, {"train": rows()}, {"train": by_column}):
        assert read(source).record["rows"] == {"train": 48, "validation": 6, "test": 6}
    data = read({"train": rows(), "dev": rows(9, 60), "test": by_column | {"text": [f"other {i}" for i in range(60)]}})
    assert data.record["rows"] == {"train": 60, "validation": 9, "test": 60}
    arrays = {"text": by_column["text"], "label": numpy.arange(60) % 4}
    by_row = [{"text": text, "label": label} for text, label in zip(*arrays.values(), strict=True)]
    assert read(arrays).labels == read(by_row).labels == ["0", "1", "2", "3"]
    pa = pytest.importorskip("pyarrow")
    assert read(pa.Table.from_pylist(rows())).record["rows"]["train"] == 48


def test_python_sources_that_are_no_table():
    with pytest.raises(BadData, match="different lengths"):
        read({"text": ["a", "b"], "label": ["x"]})
    with pytest.raises(BadData, match="Did you mean 'train'"):
        read({"trian": rows()})
    with pytest.raises(BadData, match="both mean the validation split"):
        read({"train": rows(), "val": rows(9, 60), "dev": rows(9, 80)})
    for source in (3, [], {}, {"text": "words"}, [1, 2]):
        with pytest.raises(BadData):
            read(source)


def test_missing_sources_name_what_is_there(tmp_path):
    write(tmp_path / "reviews.csv", rows())
    with pytest.raises(BadData, match=r"Did you mean 'reviews\.csv'"):
        read(tmp_path / "review.csv")
    with pytest.raises(BadData, match="no data found"):
        (tmp_path / "empty").mkdir()
        read(tmp_path / "empty")
    (tmp_path / "data.xyz").write_text("a,b\n")
    with pytest.raises(BadData, match=r"format \.xyz is unknown"):
        read(tmp_path / "data.xyz")


def test_quotes_newlines_and_marks_in_csv(tmp_path):
    records = rows()
    records[4]["text"] = 'he said "the bus, again"\nand left'
    write_csv(tmp_path / "data.csv", records)
    path = tmp_path / "data.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert records[4]["text"] in texts(read(path))


def test_tsv_without_quoting_keeps_quotation_marks(tmp_path):
    lines = [f'"Well {i},\" he said.\t{i % 2}' for i in range(40)]
    (tmp_path / "data.tsv").write_text("sentence\tlabel\n" + "\n".join(lines))
    data = read(tmp_path / "data.tsv")
    assert sorted(texts(data)) == sorted(line.split("\t")[0] for line in lines)


def test_tsv_with_quoting_is_read_as_written(tmp_path):
    records = rows()
    records[7]["text"] = 'a "quoted"\tcell'
    records[8]["text"] = 'only "quotes" here'
    write_csv(tmp_path / "data.tsv", records, "\t")
    assert {records[7]["text"], records[8]["text"]} <= set(texts(read(tmp_path / "data.tsv")))
    write_csv(tmp_path / "plain.tsv", [row for row in records if "\t" not in row["text"]], "\t")
    assert records[8]["text"] in texts(read(tmp_path / "plain.tsv"))


def test_semicolons_are_noticed_and_recorded(tmp_path):
    write_csv(tmp_path / "data.csv", rows(), ";")
    data = read(tmp_path / "data.csv")
    assert len(texts(data)) == 60 and "';'" in " ".join(data.record["decisions"])


def test_a_ragged_row_is_named_and_can_be_skipped(tmp_path):
    path = tmp_path / "data.csv"
    write_csv(path, rows())
    lines = path.read_text().splitlines()
    lines[5] += ",surplus"
    lines.insert(9, "")
    lines[12] = "alone"
    path.write_text("\n".join(lines))
    with pytest.raises(BadData) as caught:
        read(path)
    assert "2 rows cannot be used" in str(caught.value)
    assert "data.csv row 5: has 3 fields where the header has 2" in str(caught.value)
    assert "data.csv row 11: has 1 fields" in str(caught.value)
    data = read(path, skip_bad=True)
    assert [fault["row"] for fault in data.record["skipped"]] == [5, 11]
    assert sum(data.record["rows"].values()) == 58
    json.dumps(data.record)


@pytest.mark.parametrize("content, words", [
    (b"", "is empty"), (b"\n\n", "is empty"), (b"text,label\n", "holds no rows"),
    (b"text,text\na,b\n", "more than once"), (b"text,label\ngood,\xff\xfe\n", "line 2"),
    (b'text,label\ngood,1\n"open,2\nbad,3\n', "row 2 .line 3.*never closes"),
])  # fmt: skip
def test_broken_csv(tmp_path, content, words):
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    with pytest.raises(BadData, match=words):
        read(path, skip_bad=True)


def test_broken_json_lines_and_parquet(tmp_path):
    path = write(tmp_path / "data.jsonl", rows())
    lines = path.read_text().splitlines()
    lines[2], lines[30] = '{"text": ', "[1]"
    path.write_text("\n".join(lines))
    with pytest.raises(BadData, match=r"(?s)data\.jsonl row 3: is not JSON.*data\.jsonl row 31: is list"):
        read(path)
    assert sum(read(path, skip_bad=True).record["rows"].values()) == 58
    path = write(tmp_path / "data.parquet", rows())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadData, match="not a readable Parquet"):
        read(path)


def test_two_files_for_one_split(tmp_path):
    write(tmp_path / "train.csv", rows())
    write(tmp_path / "train.jsonl", rows())
    with pytest.raises(BadData, match="more than one file"):
        read(tmp_path)
    (tmp_path / "train.jsonl").rename(tmp_path / "training.jsonl")
    with pytest.raises(BadData, match="both mean the train split"):
        read(tmp_path)
    (tmp_path / "training.jsonl").rename(tmp_path / "validation_matched.jsonl")
    with pytest.raises(BadData, match="no plain validation split"):
        read(tmp_path)


def test_settings_out_of_range():
    for wrong in ({"limit": 0}, {"limit": 2.5}, {"fractions": (0.9, 0.2, 0.1)}, {"fractions": (1, 0, 0)}, {"task": "texts"},
                  {"generation": "t5"}, {"columns": {"txt": "text"}}):  # fmt: skip
        with pytest.raises(NoSuchSetting):
            read(rows(), **wrong)


def test_the_built_in_set():
    from importlib import resources

    if not resources.files("thrifty.data").joinpath("cityline", "train.csv").is_file():
        pytest.skip("the built-in set is not part of this checkout")
    data = read("cityline")
    assert data.task == "text-classification" and 8 <= len(data.labels) <= 12
    assert sum(data.record["rows"].values()) >= 600 and data.record["leaks"]["pairs"] == 0
    assert not data.record["skipped"] and data.record["source"] == {"kind": "built-in", "name": "cityline"}

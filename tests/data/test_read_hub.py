"""Sets from the hub and from `datasets.save_to_disk`. No test needs a network."""
from __future__ import annotations

import builtins
import io

import numpy
import pytest

from thrifty.core.errors import BadData, Missing
from thrifty.data import hub, read


def test_offline_names_the_built_in_set(monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr(hub, "can_resolve", lambda endpoint: False)
    with pytest.raises(BadData, match=r"'nobody/nothing:here' is no file or folder here.*'cityline'"):
        read("nobody/nothing:here")


def test_without_datasets_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **more):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(Missing, match=r'pip install "thrifty\[hub\]"'):
        read("nobody/nothing")


def make(count, start=0, labels=(0, 1, 2)):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["c", "a", "b"])})
    rows = {"sentence": [f"sentence number {i}" for i in range(start, start + count)],
            "label": [labels[i % len(labels)] for i in range(count)]}  # fmt: skip
    return datasets.Dataset.from_dict(rows, features=features)


def test_saved_tables_and_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    make(30).save_to_disk(tmp_path / "one")
    data = read(tmp_path / "one")
    assert data.labels == ["c", "a", "b"] and data.record["rows"] == {"train": 24, "validation": 3, "test": 3}
    assert data.record["source"]["kind"] == "saved"
    splits = datasets.DatasetDict({"train": make(30), "validation": make(9, 30), "test": make(9, 60, (-1,)),
                                   "unsupervised": make(9, 90)})  # fmt: skip
    splits.save_to_disk(tmp_path / "many")
    for source in (tmp_path / "many", {name: splits[name] for name in ("train", "validation", "test")}):
        data = read(source)
        assert data.test_rows == 9 and data.test()["text"][0] == "sentence number 30"
    assert "unsupervised" in " ".join(read(tmp_path / "many").record["decisions"])
    (tmp_path / "many" / "train" / "dataset_info.json").write_text("{")
    with pytest.raises(BadData, match="cannot be read"):
        read(tmp_path / "many")


def test_saved_images_stay_encoded(tmp_path):
    datasets = pytest.importorskip("datasets")
    image = pytest.importorskip("PIL.Image")
    held = []
    for i in range(30):
        stream = io.BytesIO()
        image.fromarray(numpy.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=numpy.uint8)).save(stream, "PNG")
        held.append(stream.getvalue())
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"img": [{"bytes": value, "path": None} for value in held], "label": [0, 1] * 15}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    data = read(tmp_path / "saved")
    assert data.task == "image-classification" and data.labels == ["cat", "dog"] and data.splits["train"]["image"][0] in held

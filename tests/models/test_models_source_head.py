"""The classifier of a checkpoint is kept when a model gets another: in whatever shape, under the new one's names."""
from __future__ import annotations

from pathlib import Path

import pytest
import tiny_folders
import torch
from safetensors.torch import load_file
from torch import nn

from thrifty import models

PICTURES = "image-classification"


def test_a_replaced_head(tmp_path: Path) -> None:
    folder = tiny_folders.resnet(tmp_path)
    stored = load_file(folder / "model.safetensors")
    backbone = models.load(str(folder), PICTURES, ["a", "b", "c"])
    assert list(backbone.head) == ["classifier.1.weight", "classifier.1.bias"] or set(backbone.head) == {
        "classifier.1.weight", "classifier.1.bias"}
    assert backbone.head["classifier.1.weight"].shape == (7, 32)
    assert all(torch.equal(value, stored[name]) for name, value in backbone.head.items())
    assert backbone.model.classifier[1].weight.shape == (3, 32)


def test_a_head_that_stays_is_a_copy(tmp_path: Path) -> None:
    backbone = models.load(str(tiny_folders.resnet(tmp_path)), PICTURES, list("abcdefg"))
    weight = backbone.model.classifier[1].weight
    assert torch.equal(backbone.head["classifier.1.weight"], weight)
    with torch.no_grad():
        weight.zero_()
    assert backbone.head["classifier.1.weight"].any()


def test_no_head_no_values(tmp_path: Path) -> None:
    assert models.load(str(tiny_folders.vit(tmp_path / "vit")), PICTURES, ["a", "b"]).head == {}
    assert models.load(str(tiny_folders.t5(tmp_path / "t5")), "seq2seq-generation").head == {}


def test_texts(tmp_path: Path) -> None:
    folder = tiny_folders.bert(tmp_path, kind="BertForSequenceClassification", num_labels=4)
    backbone = models.load(str(folder), "text-classification", ["a", "b", "c"])
    assert {name: tuple(t.shape) for name, t in backbone.head.items()} == {"classifier.weight": (4, 16), "classifier.bias": (4,)}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    pooled = models.load(str(folder), "text-classification", ["a", "b", "c"])
    assert torch.equal(pooled.head["classifier.weight"], backbone.head["classifier.weight"])


def test_given_by_hand() -> None:
    head = {"1.weight": torch.ones(5, 4)}
    assert models.wrap(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), head=head).head == head


@pytest.mark.parametrize(("name", "classes"), [("resnet50", 1000), ("mobilenetv2", 1000)])
def test_real_checkpoints(name: str, classes: int) -> None:
    backbone = models.load(str(tiny_folders.weights(name)), PICTURES, ["a", "b"])
    weight = next(value for key, value in backbone.head.items() if key.endswith("weight"))
    assert len(weight) == classes and len(backbone.head) == 2

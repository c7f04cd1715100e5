"""Real checkpoints, where they are at hand."""
from __future__ import annotations

import pytest
import tiny_folders as tiny
import torch

from thrifty.models import load


@pytest.mark.parametrize(("name", "task", "labels", "new"), [
    ("dinov2-small", "image-classification", ["a", "b"], ["classifier.weight", "classifier.bias"]),
    ("resnet50", "image-classification", ["a", "b"], ["classifier.1.weight", "classifier.1.bias"]),
    ("mobilenetv2", "image-classification", ["a", "b"], ["classifier.weight", "classifier.bias"]),
    ("stories15m", "causal-generation", None, []),
    ("stories15m", "text-classification", ["a", "b"], ["score.weight"]),
    ("flan-t5-small", "seq2seq-generation", None, []),
])
def test_real_checkpoints_miss_no_more_than_a_head(name: str, task: str, labels: list[str] | None, new: list[str]) -> None:
    backbone = load(str(tiny.weights(name)), task, labels)
    assert backbone.source["new_tensors"] == new
    assert all(torch.isfinite(p).all() for p in backbone.model.parameters())

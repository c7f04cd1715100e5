"""Prompts in a vision transformer, by name, from pictures to an adapter that is read back."""
from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest
from test_every_task import QUICK, row

import thrifty
from thrifty.artifact import read
from thrifty.methods import make

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
import tiny_folders  # noqa: E402

SETTINGS: dict[str, dict[str, Any]] = {
    "vpt": {"length": 3}, "vqt": {"keep": 0.5}, "expres": {"length": 2}, "noah": {"dims": [2, 3]},
    "l2p": {"size": 4, "length": 2, "top": 2}}


@pytest.mark.parametrize("method", SETTINGS)
def test_by_name(method: str, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    drawn = random.Random(1)
    rows = [row("image-classification", i, drawn) for i in range(60)]
    data = {"train": rows[:40], "validation": rows[40:50], "test": rows[50:]}
    model = tiny_folders.vit(tmp_path / "model")
    run = thrifty.tune(str(model), data, make(method, **SETTINGS[method]), tmp_path / "run", baselines=False, **QUICK)
    assert run.metrics["method"] == method and run.metrics["parameters"]["tuner"] > 0 and run.metrics["parameters"]["head"] > 0
    assert run.metrics["items"]["test"] == 10 and "accuracy" in run.metrics["test"]
    _, _, tensors = read(next((tmp_path / "run").rglob("adapter.json")).parent)
    assert (method == "vqt") == any(name.endswith(":columns") for name in tensors)

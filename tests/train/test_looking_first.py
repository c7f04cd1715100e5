"""Methods that look at the training rows before they decide, and those that save memory, through the main job, on pictures."""
from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

import thrifty
from thrifty.methods import make
from thrifty.train import predict

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
import tiny_folders  # noqa: E402

pytest.importorskip("PIL")

CASES: list[tuple[str, Any, dict[str, Any]]] = [
    ("spt", tiny_folders.vit, {"budget": 500, "grid": 20, "rank": 2}), ("kadaptation", tiny_folders.vit, {"n": 4}),
    ("head2toe", tiny_folders.vit, {"fractions": [0.05, 0.2], "steps": 20, "folds": 2}),
    ("head2toe", tiny_folders.resnet, {"fractions": [0.1], "steps": 20}), ("tinytl", tiny_folders.resnet, {})]


def picture(drawn: random.Random, bright: bool) -> bytes:
    from PIL import Image

    held, tone = io.BytesIO(), drawn.randint(150, 255) if bright else drawn.randint(0, 100)
    Image.effect_noise((32, 32), 20).point(lambda v: v // 4 + tone // 2).convert("RGB").save(held, "PNG")
    return held.getvalue()


@pytest.mark.parametrize(("name", "model", "settings"), CASES, ids=[f"{name}-{model.__name__}" for name, model, _ in CASES])
def test_from_pictures_to_an_adapter_and_back(name: str, model: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    drawn = random.Random(1)
    rows = [{"image": picture(drawn, i % 2 == 0), "label": "dark" if i % 2 else "bright"} for i in range(32)]
    data = {"train": rows[:16], "validation": rows[16:24], "test": rows[24:]}
    run = thrifty.tune(str(model(tmp_path / "model")), data, make(name, **settings), tmp_path / "run", epochs=1, batch=8,
                       progress=False, baselines=False)
    assert run.metrics["method"] == name and sum(run.metrics["parameters"].values()) > 0
    reported = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in predict(tmp_path / "run", data, split="test")] == [row["prediction"] for row in reported]
    (held,) = (tmp_path / "run").rglob("adapter.json")
    adapter = json.loads(held.read_text())
    assert "sparing" not in {row["edit"] for row in adapter["plan"]}, "what only training needed is gone"
    if name == "head2toe":
        assert adapter["about"]["chosen"]["fraction"] in settings["fractions"] and run.metrics["parameters"]["head"] > 0

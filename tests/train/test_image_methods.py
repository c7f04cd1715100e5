"""Methods for image trunks through the main job: they train, load and predict what was reported."""
from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

import thrifty
from thrifty import methods
from thrifty.train import predict

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
import tiny_folders  # noqa: E402

METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "adaptformer": (tiny_folders.vit, {"rank": 4}), "convpass-attn": (tiny_folders.vit, {"rank": 4}),
    "ssf": (tiny_folders.vit, {}), "repadapter": (tiny_folders.vit, {}), "fact-tk": (tiny_folders.vit, {"rank": 4}),
    "consolidator": (tiny_folders.vit, {"g": [4]}), "conv-par": (tiny_folders.resnet, {"reduction": 2})}


def picture(drawn: random.Random, i: int) -> dict[str, Any]:
    from PIL import Image

    held = io.BytesIO()
    Image.new("RGB", (24, 24), (drawn.randint(0, 100) + 150 * (i % 2), i, 255 - i)).save(held, "PNG")
    return {"image": held.getvalue(), "label": "bright" if i % 2 else "dark"}


@pytest.mark.parametrize("method", METHODS)
def test_from_pictures_to_predictions(method: str, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    drawn = random.Random(1)
    rows = [picture(drawn, i) for i in range(60)]
    data = {"train": rows[:40], "validation": rows[40:50], "test": rows[50:]}
    make, settings = METHODS[method]
    run = thrifty.tune(str(make(tmp_path / "model")), data, methods.make(method, **settings), tmp_path / "run", epochs=1, batch=8,
                       rate=1e-3, progress=False, baselines=False)
    assert run.metrics["parameters"]["tuner"] > 0 and run.metrics["parameters"]["head"] > 0
    reported = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert [p["prediction"] for p in predict(tmp_path / "run", data, split="test")] == [p["prediction"] for p in reported]

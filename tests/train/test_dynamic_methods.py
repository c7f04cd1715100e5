"""Methods that compute less for some pictures, and pixel prompts, in the main job: trained, calibrated, saved, loaded, repeated."""
from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import thrifty
from thrifty import artifact, models
from thrifty.cli import main as cli
from thrifty.core.errors import Unfit
from thrifty.train import predict

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
import tiny_folders  # noqa: E402

QUICK: dict[str, Any] = {"epochs": 3, "batch": 10, "progress": False, "baselines": False}


def picture(drawn: random.Random, i: int) -> bytes:
    from PIL import Image

    held = io.BytesIO()
    tone = drawn.randint(0, 100) if i % 2 else drawn.randint(150, 255)
    image = Image.new("RGB", (20, 24), (tone, tone, i))
    image.putpixel((0, 0), (i, i, i))
    image.save(held, "PNG")
    return held.getvalue()


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    pytest.importorskip("PIL")
    drawn = random.Random(1)
    rows = [{"image": picture(drawn, i), "label": "dark" if i % 2 else "bright"} for i in range(70)]
    return {"train": rows[:40], "validation": rows[40:60], "test": rows[60:]}


def tune(data: dict[str, Any], build: Any, method: Any, out: Path) -> Any:
    return thrifty.tune(str(build(out.with_name("model-" + out.name))), data, method, out=out, **QUICK)


def repeats(run: Any, data: dict[str, Any]) -> None:
    """What the saved adapter says of the test rows is what the run said of them."""
    said = [json.loads(line)["prediction"] for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
    again = predict(run.folder, data, split="test")
    assert [row["prediction"] for row in again] == said


@pytest.mark.parametrize("build", [tiny_folders.vit, tiny_folders.resnet])
def test_early_exits(data: dict[str, Any], build: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tune(data, build, {"name": "early-exit", "budget": 0.5}, tmp_path / "run")
    measured = artifact.inspect(run.folder / "adapter")["about"]["measured"]
    assert len(measured["flops"]) == 2 and measured["flops"][0] < measured["expected_flops"] < measured["flops"][1]
    assert measured["left"][0] >= 2 / 3 - 0.05 and sum(measured["left"]) == pytest.approx(1)
    repeats(run, data)
    cli(["inspect", str(run.folder)])
    assert "expected_flops" in capsys.readouterr().out


def test_block_drop(data: dict[str, Any], tmp_path: Path) -> None:
    run = tune(data, tiny_folders.resnet, {"name": "block-drop", "policy": "resnet8"}, tmp_path / "run")
    measured = artifact.inspect(run.folder / "adapter")["about"]["measured"]
    assert measured["blocks"] == 2 and 0 <= measured["blocks_used"] <= 2
    (seed,) = run.metrics["seeds"]
    assert seed["best_step"] > 0.7 * seed["history"][-1]["step"] - 1  # not before every block was free
    repeats(run, data)


@pytest.mark.parametrize("method", ["urnet", "rdi-net"])
def test_gates_and_routers(data: dict[str, Any], method: str, tmp_path: Path) -> None:
    run = tune(data, tiny_folders.resnet, method, tmp_path / "run")
    measured = artifact.inspect(run.folder / "adapter")["about"]["measured"]
    assert measured["blocks"] == 2 and 0 <= measured["used"] <= 1 and measured["flops"] > 0
    repeats(run, data)


def test_pixel_prompts(data: dict[str, Any], tmp_path: Path) -> None:
    run = tune(data, tiny_folders.vit, {"name": "pixel-prompt", "width": 6}, tmp_path / "run")
    assert run.metrics["parameters"]["tuner"] == 12 * 6 * (32 - 6)
    repeats(run, data)
    backbone = models.load(str(tmp_path / "model-run"), "image-classification", ["bright", "dark"])
    with torch.no_grad():
        assert thrifty.load(backbone.model, run.folder / "adapter").parameters()


def test_what_learns_without_labels_is_no_training(data: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Unfit, match="thrifty.online"):
        tune(data, tiny_folders.vit, "vdp", tmp_path / "run")

"""The regularised fine-tunings and distillations by name through the main job, on pictures and on texts, and back from disk."""
from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import thrifty
from thrifty.core.errors import NoSuchSetting, ThriftyError, Unfit
from thrifty.train import predict, training

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
import tiny_folders  # noqa: E402
from test_every_task import picture  # noqa: E402

pytest.importorskip("PIL")
QUICK: dict[str, Any] = {"epochs": 2, "batch": 8, "rate": 1e-3, "progress": False, "baselines": False}
PICTURES = ["l2-sp", "delta", "delta-plain", "bss", "stochnorm", "co-tuning", "lwf", "bi-tuning", "distillation",
            "distillation-token"]
TEXTS = ["l2-sp", "bss", "co-tuning", "lwf", "bi-tuning", "distillation"]
LEFT = {"distillation-token": {"distillation-token", "distillation-token-off", "distillation-head"}}  # what inference needs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regularised")
    tiny_folders.resnet(folder / "resnet")
    tiny_folders.vit(folder / "vit")
    tiny_folders.bert(folder / "bert", kind="BertForSequenceClassification", num_labels=4)
    return folder


def pictures() -> dict[str, Any]:
    drawn = random.Random(1)
    rows = [{"image": picture(drawn, i), "label": "dark" if i % 2 else "bright"} for i in range(60)]
    return {"train": rows[:40], "validation": rows[40:50], "test": rows[50:]}


def texts() -> dict[str, Any]:
    drawn = random.Random(2)
    rows = [{"text": " ".join(drawn.choices(["ab", "cd", "ef", "gh"], k=4)) + f" {i:b}".replace("0", " x").replace("1", " y"),
             "label": "odd" if i % 2 else "even"} for i in range(60)]
    return {"train": rows[:40], "validation": rows[40:50], "test": rows[50:]}


def tune(place: Path, out: Path, name: str, data: dict[str, Any], **more: Any) -> Any:
    settings: dict[str, Any] = {"name": name}
    if name.startswith("distillation"):
        settings["teacher"] = str(teacher(place, "texts" if "text" in data["train"][0] else "pictures", data))
    if name == "delta":
        settings |= {"iterations": 1, "head_epochs": 1}
    model = "bert" if "text" in data["train"][0] else "vit" if name == "distillation-token" else "resnet"
    return thrifty.tune(str(place / model), data, settings, out, **{**QUICK, **more})


def teacher(place: Path, kind: str, data: dict[str, Any]) -> Path:
    """A run whose adapter answers the same task."""
    folder = place / f"teacher-{kind}"
    if not folder.exists():
        thrifty.tune(str(place / ("bert" if kind == "texts" else "resnet")), data, "linear-probe", folder, **{**QUICK, "epochs": 1})
    return folder


def judge(run: Any, name: str, data: dict[str, Any]) -> None:
    reported = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
    again = predict(run.folder, data, split="test")
    assert [row["prediction"] for row in again] == [row["prediction"] for row in reported]
    held = json.loads((run.folder / "adapter" / "adapter.json").read_text())
    assert {row["edit"] for row in held["plan"]} == LEFT.get(name, set())
    assert run.metrics["parameters"]["head"] > 0


@pytest.mark.parametrize("name", PICTURES)
def test_on_pictures(name: str, place: Path, tmp_path: Path) -> None:
    data = pictures()
    judge(tune(place, tmp_path / "run", name, data), name, data)


@pytest.mark.parametrize("name", TEXTS)
def test_on_texts(name: str, place: Path, tmp_path: Path) -> None:
    data = texts()
    judge(tune(place, tmp_path / "run", name, data), name, data)


@pytest.mark.parametrize("name", ["bi-tuning", "co-tuning"])
def test_a_training_goes_on_with_what_it_remembered(name: str, place: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    data, real = pictures(), training.Training._step
    tune(place, tmp_path / "whole", name, data, checkpoint_every=1)

    def stops(self: training.Training) -> None:
        if self.log.step == 7:
            raise ThriftyError("stop")
        real(self)

    with monkeypatch.context() as patched:
        patched.setattr(training.Training, "_step", stops)
        with pytest.raises(ThriftyError, match="stop"):
            tune(place, tmp_path / "run", name, data, checkpoint_every=1)
    tune(place, tmp_path / "run", name, data, checkpoint_every=1, resume=True)
    one, other = (load_file(tmp_path / part / "adapter" / "adapter.safetensors") for part in ("whole", "run"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_augmentation_gives_the_second_view(augment: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    real = thrifty.BiTuning.loss

    def note(self: Any, at: Any, task: Any, model: Any, batch: Any) -> Any:
        seen.append(batch)
        return real(self, at, task, model, batch)

    monkeypatch.setattr(thrifty.BiTuning, "loss", note)
    for name in ("one", "two"):
        tune(place, tmp_path / name, "bi-tuning", pictures(), augment=augment, epochs=1)
    half, apart = len(seen) // 2, 0
    for first, again in zip(seen[:half], seen[half:], strict=True):
        assert ("view:pixel_values" in first) == (augment != "none")
        assert all(torch.equal(value, again[key]) for key, value in first.items())  # a function of seed, step, row and view
        if augment != "none":
            apart += int((first["view:pixel_values"] - first["pixel_values"]).any())
    assert apart >= (half - 1 if augment != "none" else 0)


def test_mistakes_are_told_before_anything_trains(place: Path, tmp_path: Path) -> None:
    data = pictures()
    for method, error, match in (
            ("co-tuning", Unfit, "saved with its classifier"), ("stochnorm", Unfit, "no batch norm"),
            ({"name": "distillation", "teacher": str(place / "resnet")}, Unfit, "no trained head"),
            ("distillation", NoSuchSetting, "teacher must be")):
        with pytest.raises(error, match=match):
            thrifty.tune(str(place / "vit"), data, method, tmp_path / "run", overwrite=True, **QUICK)

"""Runs on pictures: what is drawn is drawn again after an interruption, and how pictures are prepared is written down."""
from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

import thrifty
from thrifty import artifact, models
from thrifty.cli.main import run as command
from thrifty.core.errors import NoSuchSetting, WrongBase
from thrifty.tasks.image_classification import ImageClassification
from thrifty.train import predict
from thrifty.train.training import Training

Image = pytest.importorskip("PIL.Image")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
import tiny_folders  # noqa: E402

QUICK: dict[str, Any] = {"epochs": 2, "batch": 8, "rate": 1e-3, "progress": False, "baselines": False, "checkpoint_every": 2}


def picture(drawn: random.Random, i: int) -> bytes:
    held, tone = io.BytesIO(), drawn.randint(0, 100) if i % 2 else drawn.randint(150, 255)
    image = Image.new("RGB", (24, 24), (tone, tone, i))
    image.paste((i, tone // 2, 255 - i), (0, 0, 6, 12))
    image.save(held, "PNG")
    return held.getvalue()


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    drawn = random.Random(1)
    rows = [{"image": picture(drawn, i), "label": "dark" if i % 2 else "bright"} for i in range(40)]
    return {"train": rows[:24], "validation": rows[24:32], "test": rows[32:]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folders.vit(tmp_path_factory.mktemp("vit") / "model"))


@pytest.fixture(scope="module")
def whole(data: Any, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    thrifty.tune(model, data, "lora", folder, augment="randaugment", **QUICK)
    return folder


def losses(folder: Path) -> list[float]:
    return [step["loss"] for step in json.loads((folder / "metrics.json").read_text())["seeds"][0]["history"]]


def test_what_is_drawn_is_drawn_again_after_an_interruption(data: Any, model: str, whole: Path, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    step = Training._step

    def stop(self: Training) -> None:
        if self.log.step == 3:
            raise RuntimeError("enough")
        step(self)

    with monkeypatch.context() as patched:
        patched.setattr(Training, "_step", stop)
        with pytest.raises(RuntimeError, match="enough"):
            thrifty.tune(model, data, "lora", tmp_path / "parts", augment="randaugment", **QUICK)
    thrifty.tune(model, data, "lora", tmp_path / "parts", augment="randaugment", resume=True, **QUICK)
    name = "adapter/adapter.safetensors"
    assert (tmp_path / "parts" / name).read_bytes() == (whole / name).read_bytes() and losses(tmp_path / "parts") == losses(whole)
    thrifty.tune(model, data, "lora", tmp_path / "plain", **QUICK)
    assert (tmp_path / "plain" / name).read_bytes() != (whole / name).read_bytes()


def test_only_training_rows_are_changed(data: Any, model: str, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reported = [json.loads(line) for line in (whole / "predictions.jsonl").read_text().splitlines()]
    again = predict(whole, data, split="test")
    assert [row["scores"] for row in again] == [pytest.approx(row["scores"], abs=1e-6) for row in reported]
    seen, real = [], ImageClassification.collate

    def watch(self: Any, examples: Any) -> Any:
        seen.append({"drawn" in example for example in examples})
        return real(self, examples)

    monkeypatch.setattr(ImageClassification, "collate", watch)
    predict(whole, data, split="train")
    assert seen and all(kinds == {False} for kinds in seen)


def test_the_run_says_how_pictures_were_changed_and_prepared(model: str, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, about = json.loads((whole / "config.json").read_text()), artifact.inspect(whole)["about"]
    assert config["augment"] == about["limits"]["augment"] == "randaugment"
    wanted = {"do_resize": True, "size": {"height": 32, "width": 32}, "resample": 2, "do_rescale": True,
              "rescale_factor": pytest.approx(1 / 255), "do_normalize": True, "image_mean": [0.5, 0.4, 0.3],
              "image_std": [0.5, 0.5, 0.5]}
    assert {key: about["image"].get(key) for key in wanted} == wanted
    assert json.loads((whole / "environment.json").read_text())["model"]["image"] == about["image"]
    page = (whole / "report.html").read_text()
    assert "image_mean" in page and "0.4" in page and "randaugment" in page
    command(["inspect", str(whole)])
    assert "'image_mean': [0.5, 0.4, 0.3]" in capsys.readouterr().out


def test_an_adapter_beside_another_preparation_is_refused(data: Any, model: str, whole: Path, tmp_path: Path) -> None:
    other = tiny_folders.vit(tmp_path / "other")
    settings = json.loads((other / "preprocessor_config.json").read_text())
    settings["image_mean"], settings["resample"] = [0.1, 0.4, 0.3], 3
    (other / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(WrongBase, match=r"resample was 2 and is 3 here; image_mean was \[0.5, 0.4, 0.3\] and is \[0.1, 0.4, 0.3\]"):
        predict(whole, data, split="test", model=str(other))
    backbone = models.load(model, "image-classification", ["bright", "dark"])
    same = models.wrap(backbone.model, backbone.preprocess)
    assert same.source["image"] == backbone.source["image"]
    assert len(predict(whole, data, split="test", model=same)) == 8
    unknown = models.wrap(models.load(model, "image-classification", ["bright", "dark"]).model, lambda image: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # a callable says nothing of itself that could be compared
        predict(whole, data, split="test", model=unknown)
    run = thrifty.tune(str(other), data, "lora", tmp_path / "run", start=str(whole / "adapter"), **QUICK)
    assert any("prepared otherwise: resample was 2 and is 3 here" in sentence for sentence in run.metrics["warnings"])


def test_mistakes_before_anything_trains(data: Any, model: str, tmp_path: Path) -> None:
    with pytest.raises(NoSuchSetting, match="no augmentation 'flips'. Did you mean 'flip'"):
        thrifty.tune(model, data, "lora", tmp_path / "a", augment="flips", **QUICK)
    texts = [{"text": f"{word} {i}", "label": word} for i in range(10) for word in ("good", "bad")]
    with pytest.raises(NoSuchSetting, match="text-classification has no limit 'augment'"):
        thrifty.tune(str(tiny_folders.bert(tmp_path / "bert")), texts, "lora", tmp_path / "b", augment="flip", **QUICK)


def test_several_sets_of_pictures_each_with_its_recipe(data: Any, model: str, tmp_path: Path) -> None:
    other = {name: [{**row, "label": str(i % 3)} for i, row in enumerate(part)] for name, part in data.items()}
    run = thrifty.tune(model, {"tone": data, "place": other}, "lora", tmp_path / "run", augment={"tone": "flip"}, **QUICK)
    parts = artifact.inspect(run.folder)["about"]["limits"]["parts"]
    assert parts["tone"]["augment"] == "flip" and parts["place"]["augment"] == "none"


def test_vit_mini_learns_digits_out_of_the_box(tmp_path: Path) -> None:
    from thrifty.models.finding import VIT_MINI, has_weights

    if not has_weights(VIT_MINI):
        pytest.skip(f"{VIT_MINI} holds no weights: recipes/vit_mini makes them")
    datasets = pytest.importorskip("sklearn.datasets")
    held = datasets.load_digits()
    for i, (image, label) in enumerate(zip(held.images[:420], held.target[:420], strict=True)):
        (tmp_path / "digits" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).astype("uint8")).save(tmp_path / "digits" / str(label) / f"{i}.png")
    run = thrifty.tune("vit-mini", tmp_path / "digits", "lora", tmp_path / "run", epochs=4, rate=5e-3, progress=False)
    assert run.metrics["test"]["accuracy"]["value"] > 0.7

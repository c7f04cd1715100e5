"""Methods that keep or solve instead of training, from folders of pictures to a run: what is searched, and what is said."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_image_text import draw, save

import thrifty
from thrifty.cli.main import run as thrifty_run
from thrifty.core.errors import BadData
from thrifty.data import images, read
from thrifty.data.augmenting import find
from thrifty.models import load
from thrifty.train import predict


@pytest.fixture(scope="module")
def home(tmp_path_factory: Any) -> Path:
    place = tmp_path_factory.mktemp("few")
    save(place / "clip", "clip")
    for k, name in enumerate(("cat", "dog", "sea_horse")):
        draw(place / "data" / name, 12, 90 * k)
        draw(place / "made" / name, 2, 90 * k + 5)
    draw(place / "loose", 3, 10)
    return place


def run(home: Path, out: Path, method: dict[str, Any], **settings: Any) -> Any:
    return thrifty.tune(str(home / "clip"), str(home / "data"), method, out, batch=8, baselines=False, progress=False, shots=4,
                        templates="a photo of a {}.", **settings)


@pytest.mark.parametrize("method", [{"name": "tip-adapter", "views": 2}, {"name": "lp++", "steps": 20},
                                    {"name": "ape", "views": 2, "steps_beta": 5}], ids=lambda method: method["name"])
def test_no_step_is_taken(home: Path, tmp_path: Path, method: dict[str, Any]) -> None:
    done = run(home, tmp_path / "run", method, seeds=2)
    for seed in done.metrics["seeds"]:
        assert seed["history"] == [] and seed["stopped"] == "finished" and [e["step"] for e in seed["evaluations"]] == [0]
    assert done.metrics["timing"]["steps"] == 0
    assert done.metrics["parameters"]["tuner"] == (3 * 32 + 2 * 3 if method["name"] == "lp++" else 0)
    about = json.loads((tmp_path / "run" / "adapter" / "adapter.json").read_text())["about"]
    assert about["support"] == {"pictures": 12, "views of each": method.get("views", 1)}
    assert any("validation split" in sentence for sentence in done.metrics["warnings"])
    assert "The test split had no part in it." in (tmp_path / "run" / "report.html").read_text()
    assert len(predict(tmp_path / "run", home / "loose")) == 3
    adapters = [tmp_path / "run" / f"seed-{n}" / "adapter" / "adapter.json" for n in (0, 1)]
    first, second = (json.loads(adapter.read_text())["tensors"] for adapter in adapters)
    assert first != second  # other views


def test_keys_are_of_chance_views_of_the_training_pictures(home: Path, tmp_path: Path) -> None:
    words = ["--method", "tip-adapter", "--set", "views=2", "--set", "steps_beta=3", "--shots", "2", "--seed", "5", "--batch", "4"]
    thrifty_run(["tune", "--model", str(home / "clip"), "--data", str(home / "data"), "--out", str(tmp_path / "run"), *words,
                 "--no-baselines", "--quiet"])
    backbone = load(str(home / "clip"), "image-classification", ["cat", "dog", "sea_horse"])
    (edit,) = thrifty.load(backbone.model, tmp_path / "run").edits.values()
    train, recipe = read(str(home / "data"), shots=2).splits["train"], find("crop-flip:0.5")
    assert edit.labels.tolist() == train["label"]
    raw = []
    for row, held in enumerate(train["image"]):
        views = [recipe.apply(images.open(held), 5, turn, row).resize((16, 16), backbone.preprocess.resample) for turn in (0, 1)]
        ready = backbone.preprocess(images=views, return_tensors="pt", do_resize=False, do_center_crop=False)["pixel_values"]
        with torch.no_grad():
            raw.append(backbone.model.image_features(torch.as_tensor(ready)).mean(0))
    torch.testing.assert_close(edit.keys, torch.nn.functional.normalize(torch.stack(raw), dim=-1), rtol=1e-4, atol=1e-5)


def test_a_support_set_in_the_place_of_training_pictures(home: Path, tmp_path: Path) -> None:
    method = {"name": "sus-x", "folder": str(home / "made"), "steps_beta": 3, "steps_gamma": 3, "steps_alpha": 3}
    run(home, tmp_path / "run", method)
    data = json.loads((tmp_path / "run" / "adapter" / "adapter.json").read_text())
    assert data["about"]["support"] == {"pictures": 6, "views of each": 0} and data["about"]["measured"]["settings tried"] == 27
    model = load(str(home / "clip"), "image-classification", ["cat", "dog", "sea_horse"])
    at = thrifty.load(model.model, tmp_path / "run")
    (edit,) = at.edits.values()
    from PIL import Image

    pixels = [model.preprocess(images=Image.open(home / "made" / name / f"{i}.png"), return_tensors="pt")["pixel_values"]
              for name in ("cat", "dog", "sea_horse") for i in range(2)]
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(model.model.image_features(torch.cat(pixels)), dim=-1)
    torch.testing.assert_close(edit.keys, wanted, rtol=1e-4, atol=1e-5)
    (home / "made" / "dog").rename(home / "made" / "god")
    with pytest.raises(BadData, match="god is the folder of no class"):
        run(home, tmp_path / "other", method)
    (home / "made" / "god").rename(home / "god")
    with pytest.raises(BadData, match="no folder for the class 'dog'"):
        run(home, tmp_path / "other", method)
    (home / "god").rename(home / "made" / "dog")
    (home / "made" / "dog" / "9.png").write_text("no picture")
    with pytest.raises(BadData, match=r"9\.png cannot be decoded"):
        run(home, tmp_path / "other", method)


@pytest.mark.parametrize("method", ["tip-adapter-f", "ape-t", "clip-adapter", "taskres", "clip-lora"])
def test_those_that_train(home: Path, tmp_path: Path, method: str) -> None:
    done = run(home, tmp_path / "run", {"name": method}, epochs=2, augment="crop-flip:0.5")
    assert done.metrics["timing"]["steps"] > 0 and done.metrics["parameters"]["tuner"] > 0
    assert len(predict(tmp_path / "run", home / "loose")) == 3

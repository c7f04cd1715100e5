"""Several models as one module: what it answers, how it is loaded, saved and recognised."""
from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import small_zoos as small
import tiny_folders
import torch
import transformers as hf
from torch import nn

import thrifty
from thrifty import models
from thrifty.cli import tune as command
from thrifty.core.errors import NoSuchSetting, Unfit, WrongBase
from thrifty.methods import make
from thrifty.models import wrap
from thrifty.models.outline import outline
from thrifty.train import predict
from thrifty.zoo import gather
from thrifty.zoo.loading import join, join_names


def test_the_answer_is_one_head_on_what_all_models_see() -> None:
    resnet, vit = small.resnet(1), small.vit(2)
    x = small.pictures()
    with torch.no_grad():
        seen = torch.cat([resnet.resnet(x).pooler_output.flatten(1), vit.vit(x).last_hidden_state[:, 0]], 1)
        zoo = small.zoo(resnet, vit, outputs=5)
        wanted = seen @ zoo.head.weight.T + zoo.head.bias
        assert torch.allclose(zoo(pixel_values=x)["logits"], wanted, atol=1e-6) and wanted.shape == (4, 5)
    assert zoo.trunk.widths == [32, 16] and zoo.trunk.heads == ["classifier.1", "classifier"]
    assert not any("classifier" in name for name, _ in zoo.named_parameters())


def test_mistakes_are_named() -> None:
    with pytest.raises(NoSuchSetting, match="at least two models, not of a alone"):
        small.zoo(small.resnet())
    same = small.resnet()
    with pytest.raises(NoSuchSetting, match="twice"):
        small.zoo(same, same)
    with pytest.raises(Unfit, match="'b' .*cannot join a zoo"):
        gather([small.resnet(), nn.Conv2d(3, 4, 1)], ["a", "b"], 2)
    assert gather([small.resnet(i) for i in range(3)], ["a", "b", "a"], 2).trunk.names == ["a", "b", "a-2"]


@pytest.mark.parametrize(("names", "said"), [("a", "'a'"), ("a,", "'a,'"), ("", "''")])
def test_fewer_than_two_names_are_refused(names: str, said: str) -> None:
    with pytest.raises(NoSuchSetting, match=f"at least two models.*{said}"):
        join_names(names)


class Processor:
    def __init__(self, mean: float) -> None:
        self.mean = mean

    def __call__(self, picture: Any) -> Any:
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        return {"image_mean": [self.mean] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}, "do_rescale": True,
                "rescale_factor": 1 / 255}


def test_each_model_is_shown_pictures_as_it_wants_them() -> None:
    first, second = small.resnet(1), small.resnet(2)
    made = join([wrap(first, Processor(0.5), name="first"), wrap(second, Processor(0.25), name="second")], 3)
    x = small.pictures()
    with torch.no_grad():
        seen = made.model.trunk(x).pooler_output
        wanted = second(x + 0.5).logits  # (x 0.5 + 0.5 - 0.25) / 0.5
    assert torch.allclose(seen[:, 32:], wanted, atol=1e-5) and not torch.allclose(seen[:, 32:], second(x).logits, atol=1e-2)
    assert made.source["image"]["others"] == [{"mean": [0.25] * 3, "std": [0.5] * 3, "size": [32, 32]}]
    with pytest.raises(Unfit, match="'second' cannot join a zoo"):
        join([wrap(small.resnet(1), Processor(0.5), name="first"), wrap(small.resnet(2), None, name="second")], 3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two residual networks of one architecture, and a vision transformer."""
    place = tmp_path_factory.mktemp("zoo")
    found = {"vit": tiny_folders.vit(place / "vit")}
    for name, seed in (("one", 1), ("two", 2)):
        small.resnet(seed).save_pretrained(place / name)
        hf.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(place / name)
        found[name] = place / name
    return found


def test_a_zoo_is_loaded_by_the_names_of_its_models(folders: dict[str, Path]) -> None:
    name = f"zoo:{folders['one']},{folders['vit']}"
    backbone = models.load(name, "image-classification", ["a", "b"], seed=3)
    assert backbone.source["id"] == name and backbone.source["new_tensors"] == ["head.weight", "head.bias"]
    assert backbone.model.trunk.names == ["one", "vit"] and backbone.model.head.out_features == 2
    state, again = (m.state_dict() for m in (backbone.model, models.load(name, "image-classification", ["a", "b"], seed=3).model))
    assert state.keys() == again.keys() and all(torch.equal(state[key], again[key]) for key in state)
    with pytest.raises(NoSuchSetting, match="not text-classification"):
        models.load(name, "text-classification", ["a", "b"])


def test_every_model_is_compared_when_an_adapter_is_loaded(folders: dict[str, Path], tmp_path: Path) -> None:
    name = f"zoo:{folders['one']},{folders['two']}"

    def fresh() -> nn.Module:
        return models.load(name, "image-classification", ["a", "b"]).model

    model = fresh()
    at = thrifty.attach(model, thrifty.LinearProbe())
    with torch.no_grad():
        model.head.weight.add_(1.0)
    at.save(tmp_path / "adapter")
    x = small.pictures()
    loaded = fresh()
    thrifty.load(loaded, tmp_path / "adapter")
    assert torch.equal(loaded(x)["logits"], model(x)["logits"])
    for i in range(2):
        other = fresh()
        with torch.no_grad():
            next(other.get_submodule(f"trunk.base{i}").parameters()).add_(1e-3)
        with pytest.raises(WrongBase, match=rf"trunk\.base{i}\."):
            thrifty.load(other, tmp_path / "adapter")


def picture(chance: random.Random, i: int) -> bytes:
    from PIL import Image

    held, tone = io.BytesIO(), chance.randint(0, 90) if i % 2 else chance.randint(160, 255)
    image = Image.new("RGB", (32, 32), (tone, tone, i))
    image.paste((i, tone // 2, 255 - i), (0, 0, 8, 12))
    image.save(held, "PNG")
    return held.getvalue()


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    pytest.importorskip("PIL.Image")
    chance = random.Random(1)
    rows = [{"image": picture(chance, i), "label": "dark" if i % 2 else "bright"} for i in range(48)]
    return {"train": rows[:24], "validation": rows[24:36], "test": rows[36:]}


@pytest.mark.parametrize(("method", "names"), [
    ({"name": "dery", "blocks": 2, "probe": 16, "trials": 3, "candidates": 2}, ("one", "two", "vit")),
    ({"name": "hub-pathway"}, ("one", "two", "vit")), ({"name": "zoo-tuning", "lite": True}, ("one", "two"))],
    ids=lambda v: v["name"] if isinstance(v, dict) else "")
def test_tuning_and_predicting(method: dict[str, Any], names: tuple[str, ...], folders: dict[str, Path], data: dict[str, Any],
                               tmp_path: Path) -> None:
    name = "zoo:" + ",".join(str(folders[one]) for one in names)
    run = thrifty.tune(name, data, method, tmp_path / "run", epochs=2, batch=8, seed=4, progress=False)
    assert run.metrics["model"] == name and run.metrics["parameters"]["head"] > 0
    said = predict(tmp_path / "run", [{"image": row["image"]} for row in data["test"]])
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert all(a["scores"] == pytest.approx(b["scores"], abs=1e-6) for a, b in zip(said, lines, strict=True))
    swapped = "zoo:" + ",".join(str(folders[one]) for one in reversed(names))
    with pytest.raises(WrongBase):
        predict(tmp_path / "run", [{"image": row["image"]} for row in data["test"]], model=swapped)


def test_the_command_line() -> None:
    parser = command.parser()
    places, _, _ = command.gather(parser.parse_args(["--models", "a, b", "--data", "d"]))
    assert places["model"] == "zoo:a,b"
    with pytest.raises(NoSuchSetting, match="give one of the two"):
        command.gather(parser.parse_args(["--models", "a,b", "--model", "c", "--data", "d"]))
    with pytest.raises(NoSuchSetting, match="at least two models"):
        command.gather(parser.parse_args(["--models", "a", "--data", "d"]))


def test_a_zoo_without_weights_has_the_same_shapes(folders: dict[str, Path]) -> None:
    name = f"zoo:{folders['one']},{folders['vit']}"
    drawing, real = outline(name, "image-classification", 4), models.load(name, "image-classification", list("abcd")).model
    assert {n: p.shape for n, p in drawing.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}


@pytest.mark.parametrize("name", ["zoo-tuning", "hub-pathway", "dery"])
def test_one_model_alone_is_refused(name: str) -> None:
    with pytest.raises(Unfit, match=f"{name} makes one model of several, and ResNetForImageClassification is one"):
        thrifty.attach(small.resnet(), make(name), example={"pixel_values": small.pictures(2)}, batches=small.lessons())

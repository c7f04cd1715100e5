"""Pictures: prepared by the backbone's own numbers, decoded when a batch is made."""
from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_folders as tiny
import torch
import transformers as T
from PIL import Image
from torch import nn

from thrifty import models, tasks
from thrifty.core.errors import BadData, NoSuchSetting, Unfit
from thrifty.models import wrap

LABELS = ["no", "yes", "perhaps"]


def picture(seed: int, size: tuple[int, int] = (32, 32)) -> bytes:
    data = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    kept = io.BytesIO()
    Image.fromarray(data).save(kept, "png")
    return kept.getvalue()


TABLE = {"image": [picture(0), picture(1), picture(2, (50, 40))], "label": [0, 2, 1]}


def test_pictures_are_scaled_and_normalised_as_the_backbone_says(tmp_path: Path) -> None:
    backbone = models.load(str(tiny.vit(tmp_path)), "image-classification", LABELS)
    task = tasks.get("image-classification", backbone, LABELS)
    batch = task.collate(task.encode(TABLE))
    assert batch["pixel_values"].shape == (3, 3, 32, 32) and batch["labels"].tolist() == [0, 2, 1]
    raw = np.asarray(Image.open(io.BytesIO(TABLE["image"][0]))).transpose(2, 0, 1) / 255
    wanted = (raw - np.array([0.5, 0.4, 0.3])[:, None, None]) / 0.5
    np.testing.assert_allclose(batch["pixel_values"][0].numpy(), wanted, atol=1e-5)
    loss, items = task.loss(backbone.model, batch)
    assert items == 3
    torch.testing.assert_close(loss, backbone.model(**batch).loss)
    assert task.head_parameters == ["classifier.weight", "classifier.bias"]


def test_features_of_a_transformer_and_of_a_network_of_convolutions(tmp_path: Path) -> None:
    for build, width in ((tiny.vit, 16), (tiny.resnet, 32)):
        backbone = models.load(str(build(tmp_path / build.__name__)), "image-classification", LABELS)
        task = tasks.get("image-classification", backbone, LABELS)
        batch = task.collate(task.encode(TABLE))
        found = task.features(backbone.model, batch)
        assert found.shape == (3, width)
        with torch.no_grad():
            states = backbone.model.base_model(batch["pixel_values"]).last_hidden_state
        wanted = states.mean(dim=1) if states.dim() == 3 else states.mean(dim=(2, 3))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_a_broken_picture_is_named_by_its_row(tmp_path: Path) -> None:
    backbone = models.load(str(tiny.vit(tmp_path)), "image-classification", LABELS)
    task = tasks.get("image-classification", backbone, LABELS)
    examples = task.encode({"image": [picture(0), picture(1)[:100]]})
    with pytest.raises(BadData, match="row 1"):
        task.collate(examples)


class Plain(nn.Module):
    """A network that knows nothing of any library."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.last = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.body(x))


def as_tensor(image: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.resize((32, 32))).copy()).permute(2, 0, 1).float() / 255


def test_any_module_of_ones_own() -> None:
    backbone = wrap(Plain(), as_tensor, new=["last"])
    task = tasks.get("image-classification", backbone, LABELS)
    batch = task.collate(task.encode(TABLE))
    assert set(batch) == {"x", "labels"} and task.head_parameters == ["last.weight", "last.bias"]
    loss, _ = task.loss(backbone.model, batch)
    logits = backbone.model(batch["x"])
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, batch["labels"]))
    assert [row["prediction"] for row in task.predict(backbone.model, batch)] == logits.argmax(dim=1).tolist()
    torch.testing.assert_close(task.features(backbone.model, batch), backbone.model.body(batch["x"]))
    assert tasks.get("image-classification", wrap(Plain(), as_tensor), LABELS).head is None


def test_a_module_without_a_last_linear_layer_has_no_features() -> None:
    task = tasks.get("image-classification", wrap(nn.Sequential(nn.Flatten()), as_tensor), LABELS)
    with pytest.raises(Unfit, match="Sequential ends in no linear layer"):
        task.features(task.backbone.model, {"input": torch.zeros(1, 3, 2, 2)})


def test_pictures_need_an_image_processor() -> None:
    with pytest.raises(NoSuchSetting, match="no image processor"):
        tasks.get("image-classification", wrap(Plain()), LABELS)


@pytest.mark.parametrize("name", ["dinov2-small", "resnet50", "mobilenetv2"])
def test_real_backbones_read_pictures(name: str) -> None:
    backbone = models.load(str(tiny.weights(name)), "image-classification", LABELS)
    task = tasks.get("image-classification", backbone, LABELS)
    batch = task.collate(task.encode({"image": [picture(0, (80, 60))], "label": [1]}))
    assert batch["pixel_values"].shape[1] == 3
    assert torch.isfinite(task.loss(backbone.model, batch)[0]) and torch.isfinite(task.features(backbone.model, batch)).all()


class TestAugmentation:
    """The limit ``augment``: what training sees changes from step to step, what is judged never does."""

    def of(self, folder: Path, recipe: str, build: Any = tiny.vit) -> tuple[Any, list[dict[str, Any]]]:
        backbone = models.load(str(folder if (folder / "config.json").exists() else build(folder)), "image-classification", LABELS)
        task = tasks.get("image-classification", backbone, LABELS, augment=recipe)
        return task, task.encode({**TABLE, "image": [picture(i, (50, 40)) for i in range(3)]})

    def test_training_sees_other_pictures_at_each_step(self, tmp_path: Path) -> None:
        task, examples = self.of(tmp_path / "vit", "crop-flip")
        plain = task.collate(examples)["pixel_values"]
        seen = [task.collate(task.vary(examples, 0, step)) for step in (0, 1, 0)]
        assert torch.equal(seen[0]["pixel_values"], seen[2]["pixel_values"]) and seen[0]["labels"].tolist() == [0, 2, 1]
        for other in (seen[1]["pixel_values"], plain):
            assert ((seen[0]["pixel_values"] != other).flatten(1).any(1)).all()
        alone = task.collate(task.vary(examples[1:2], 0, 0))["pixel_values"]
        torch.testing.assert_close(alone[0], seen[0]["pixel_values"][1])
        assert torch.equal(task.collate(examples)["pixel_values"], plain), "what was varied is not what is kept"
        assert task.limits["augment"] == "crop-flip"

    def test_a_cut_is_what_the_model_sees_without_its_own_crop(self, tmp_path: Path) -> None:
        folder = tiny.vit(tmp_path / "vit")
        crops = T.BitImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, resample=2)
        crops.save_pretrained(folder)
        for recipe, varied in (("crop-flip:1", True), ("vtab", False)):
            task, examples = self.of(folder, recipe)
            given = task.vary(examples, 0, 3) if varied else examples
            seen = task.collate(given)["pixel_values"][0].numpy()
            image = Image.open(io.BytesIO(examples[0]["image"]))
            if varied:
                image = task.recipe.apply(image, 0, 3, 0)
            raw = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1) / 255
            mean, std = (np.array(numbers)[:, None, None] for numbers in (crops.image_mean, crops.image_std))
            np.testing.assert_allclose(seen, (raw - mean) / std, atol=1e-5)
        plain = self.of(folder, "none")[0]
        assert not np.allclose(plain.collate(examples)["pixel_values"][0].numpy(), seen, atol=0.1)

    def test_for_a_model_that_resizes_whole_pictures_vtab_is_none(self, tmp_path: Path) -> None:
        (first, examples), (other, _) = self.of(tmp_path / "vit", "vtab"), self.of(tmp_path / "vit", "none")
        assert torch.equal(first.collate(first.vary(examples, 0, 0))["pixel_values"], other.collate(examples)["pixel_values"])

    def test_a_callable_of_ones_own_is_given_the_cut(self) -> None:
        backbone = wrap(Plain(), as_tensor)
        task = tasks.get("image-classification", backbone, LABELS, augment="flip")
        examples = task.encode({"image": TABLE["image"][:2], "label": [0, 1]})
        plain = task.collate(examples)["x"]
        mirrored = [torch.equal(seen, whole.flip(2)) for step in range(8) for seen, whole in
                    zip(task.collate(task.vary(examples, 0, step))["x"], plain, strict=True)
                    if torch.equal(seen, whole) or torch.equal(seen, whole.flip(2))]
        assert len(mirrored) == 16 and set(mirrored) == {True, False}
        with pytest.raises(NoSuchSetting, match="'vtab'.*image processor"):
            tasks.get("image-classification", backbone, LABELS, augment="vtab")

    def test_names_that_are_none(self, tmp_path: Path) -> None:
        with pytest.raises(NoSuchSetting, match="no augmentation 'crop_flip'. Did you mean 'crop-flip'"):
            self.of(tmp_path / "vit", "crop_flip")

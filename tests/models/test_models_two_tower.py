"""Two encoders joined by projections: what they compute, their folder, and methods of image-text models on them."""
from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_folders as tiny
import torch
import transformers as T

import thrifty
from thrifty import attach, models
from thrifty.core.errors import BrokenArtifact, NoSuchSetting, Unfit
from thrifty.models import TwoTower

pytest.importorskip("PIL")
from PIL import Image  # noqa: E402

LABELS = ["dark", "bright red"]


def make(folder: Path, kind: str = "vit") -> Path:
    """A small ViT with tokens, or a small MobileNet without, beside a small BERT."""
    text = T.BertModel(T.BertConfig(**tiny.SMALL, max_position_embeddings=64))
    torch.manual_seed(3)
    if kind == "vit":
        sizes = {key: tiny.SMALL[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
        image: Any = T.Dinov2Model(T.Dinov2Config(**sizes, image_size=32, patch_size=8))
    else:
        image = T.MobileNetV2Model(T.MobileNetV2Config(depth_multiplier=0.1, tf_padding=False))
        for norm in (m for m in image.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.running_var.fill_(0.02)  # or nothing would be left of a picture behind fifty random layers
    model = TwoTower(image, text, 16 if kind == "vit" else 1280, 12)
    with torch.no_grad():
        for p in (*model.visual_projection.parameters(), *model.text_projection.parameters()):
            p.normal_()
    model.eval().save_pretrained(folder)
    tiny.tokenizer("encoder").save_pretrained(folder)
    T.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def picture(tone: int) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (32, 32), (tone, tone // 2, 255 - tone)).save(held, "PNG")
    return held.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("kind", ["vit", "mobilenet"])
def test_what_they_compute_is_read_back(kind: str, tmp_path: Path) -> None:
    pair = models.load(str(make(tmp_path, kind)), "contrastive")
    model: Any = pair.model
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    ids = pair.preprocess.texts(["a photo of a dark.", "a photo of a bright red."], return_tensors="pt", padding=True)
    with torch.no_grad():
        states = model.text_model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).last_hidden_state
        texts = [model.text_projection.weight @ row[mask.bool()].mean(0) for row, mask in
                 zip(states, ids["attention_mask"], strict=True)]
        places = model.vision_model(pixels)
        pooled = places.last_hidden_state[:, 0] if kind == "vit" else places.last_hidden_state.mean((2, 3))
        images = pooled @ model.visual_projection.weight.T
        found = model(pixels, ids["input_ids"], ids["attention_mask"])
        torch.testing.assert_close(found["text_embeds"], torch.nn.functional.normalize(torch.stack(texts)))
        torch.testing.assert_close(found["image_embeds"], torch.nn.functional.normalize(images))
        classifier = models.load(str(tmp_path), "image-classification", LABELS)
        logits = classifier.model(pixels)["logits"]
    torch.testing.assert_close(logits, found["logits_per_image"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits, found["image_embeds"] @ found["text_embeds"].T / 0.07, atol=1e-4, rtol=1e-4)
    assert classifier.source["new_tensors"] == [] and classifier.source["class"] == "ImageTextModel"


@pytest.mark.parametrize("method", ["coop", "ivlp", "maple", "clip-adapter", "clip-lora"])
def test_methods_of_image_text_models(folder: Path, method: str, tmp_path: Path) -> None:
    rows = [{"image": picture(5 * i + (120 if i % 2 else 0)), "label": LABELS[i % 2]} for i in range(12)]
    data = {"train": rows[:8], "validation": rows[8:10], "test": rows[10:]}
    depths: dict[str, dict[str, Any]] = {"maple": {"depth": 2}, "ivlp": {"text_depth": 2, "image_depth": 2}}
    how = {"name": method, **depths.get(method, {})}
    run = thrifty.tune(str(folder), data, how, tmp_path / "run", epochs=1, batch=4, rate=1e-2, progress=False, baselines=False)
    assert run.metrics["method"] == method and run.metrics["parameters"]["tuner"] > 0


def test_a_convolutional_tower_takes_no_tokens(tmp_path: Path) -> None:
    backbone = models.load(str(make(tmp_path, "mobilenet")), "image-classification", LABELS)
    example = {"pixel_values": torch.randn(2, 3, 32, 32)}
    attach(backbone.model, thrifty.methods.find("coop")(), example=example)
    with pytest.raises(Unfit, match="MobileNetV2Model reads none"):
        attach(models.load(str(tmp_path), "image-classification", LABELS).model, thrifty.methods.find("maple")(depth=2),
               example=example)


def test_folders_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NoSuchSetting, match="no form for text-classification; it serves image-classification, contrastive"):
        models.load(str(folder), "text-classification", LABELS)
    said = json.loads((folder / "config.json").read_text())
    for name, change, error in (("lacking", {"projection_dim": None}, BrokenArtifact),
                                ("strange", {"model_type": "three"}, NoSuchSetting),
                                ("larger", {"projection_dim": 13}, BrokenArtifact)):
        other = shutil.copytree(folder, tmp_path / name)
        config = {key: value for key, value in {**said, **change}.items() if value is not None}
        (other / "config.json").write_text(json.dumps(config))
        with pytest.raises(error):
            models.load(str(other), "image-classification", LABELS)

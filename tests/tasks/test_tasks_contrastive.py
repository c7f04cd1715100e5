"""Pictures and captions: the loss and the recalls written out, the columns they come from, a training with a method."""
from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_folders as tiny
import torch

import thrifty
from thrifty import data, models, tasks
from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.models import Backbone
from thrifty.train.predict import predict

pytest.importorskip("PIL")
from PIL import Image  # noqa: E402

WORDS = ["dark", "bright", "red", "dull", "loud", "wet"]


def picture(tone: int) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (20, 18), (tone, 255 - tone, tone // 2)).save(held, "PNG")
    return held.getvalue()


def table(count: int, first: int = 0) -> dict[str, list[Any]]:
    drawn = random.Random(first)
    return {"image": [picture(first + i) for i in range(count)],
            "captions": [[" ".join(drawn.choices(WORDS, k=3)) for _ in range(1 + i % 3)] for i in range(count)]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def backbone(folder: str) -> Backbone:
    return models.load(folder, "contrastive")


def test_what_a_batch_holds_and_its_loss(backbone: Backbone) -> None:
    task = tasks.get("contrastive", backbone)
    examples = task.encode(table(5))
    batch = task.collate(examples)
    assert batch["owners"].tolist() == [0, 1, 1, 2, 2, 2, 3, 4, 4] and len(batch["input_ids"]) == 9
    one = task.vary(examples, 3, 7)
    assert [len(example["captions"]) for example in one] == [1] * 5 and one == task.vary(examples, 3, 7)
    seen = {task.vary(examples, 3, step)[2]["captions"][0]["input_ids"].__repr__() for step in range(40)}
    assert len(seen) == 3, "every caption has its turn"
    batch = task.collate(one)
    loss, count = task.loss(backbone.model, batch)
    with torch.no_grad():
        image, text = ([side[name] for side in [backbone.model(**task.inputs(backbone.model, batch))]][0]
                       for name in ("image_embeds", "text_embeds"))
    logits = (backbone.model.logit_scale.exp() * image @ text.T).double().detach().numpy()  # type: ignore[operator, union-attr]
    rows = [np.log(np.exp(line - line.max()).sum()) + line.max() - line[i] for i, line in enumerate(logits)]
    columns = [np.log(np.exp(line - line.max()).sum()) + line.max() - line[i] for i, line in enumerate(logits.T)]
    assert count == 5 and loss.item() == pytest.approx((np.mean(rows) + np.mean(columns)) / 2, rel=1e-5)


def test_recalls(backbone: Backbone) -> None:
    task = tasks.get("contrastive", backbone)
    held = table(12)
    found = task.predict(backbone.model, task.collate(task.encode(held)))
    images = [np.array(row["image"]) for row in found]
    texts = [(i, np.array(text)) for i, row in enumerate(found) for text in row["captions"]]
    forth = [any(i == j for j, _ in sorted(texts, key=lambda one: -float(one[1] @ image))[:5]) for i, image in enumerate(images)]
    back: list[list[bool]] = [[] for _ in images]
    for i, text in texts:
        back[i].append(i in sorted(range(12), key=lambda j: -float(images[j] @ text))[:5])
    metrics = task.metrics(found, held)
    assert metrics["image_to_text_at_5"] == pytest.approx(np.mean(forth))
    assert metrics["text_to_image_at_5"] == pytest.approx(np.mean([np.mean(own) for own in back]))
    assert metrics["recall_at_5"] == pytest.approx((metrics["image_to_text_at_5"] + metrics["text_to_image_at_5"]) / 2)
    blind = task.metrics(task.majority(held, held), held)
    assert blind["recall_at_10"] == 0, "who says the same of everything finds nothing"
    right = [{"image": list(map(float, line)), "captions": [list(map(float, line))]} for line in np.eye(3)]
    assert task.metrics(right, {"image": [0] * 3})["recall_at_1"] == 1


def test_columns(tmp_path: Path) -> None:
    rows = {"image": table(9)["image"], "captions": table(9)["captions"], "image_id": [f"{i}.jpg" for i in range(9)]}
    found = data.read({"train": rows}, task="contrastive")
    assert found.columns == {"image": "image", "captions": "captions"} and found.labels is None
    assert {len(split["image"]) for split in found.splits.values()} == {7, 1}
    named = data.read({"train": {"picture": rows["image"], "said": ["a b c"] * 9}}, columns={"captions": "said"})
    assert named.task == "contrastive" and named.splits["train"]["captions"][0] == ["a b c"]
    with pytest.raises(BadData, match="captions"):
        data.read({"train": {"image": rows["image"], "n": list(range(9))}}, task="contrastive")
    with pytest.raises(BadData, match="captions is empty"):
        data.read({"train": {**rows, "captions": [*rows["captions"][:-1], []]}}, task="contrastive")


def test_refusals(backbone: Backbone, tmp_path: Path) -> None:
    task = tasks.get("contrastive", backbone)
    with pytest.raises(BadData, match="row 0: captions"):
        task.encode({"image": [b""], "captions": [[]]})
    with pytest.raises(BadData, match="row 0: "):
        task.collate(task.encode({"image": [b"no picture"], "captions": [["red"]]}))
    with pytest.raises(NoSuchSetting, match="contrastive; it serves"):
        models.load(str(tiny.bert(tmp_path / "bert")), "contrastive")
    with pytest.raises(NoSuchSetting, match="processor for both"):
        tasks.get("contrastive", models.wrap(backbone.model))
    with pytest.raises(NoSuchSetting, match="40 positions"):
        tasks.get("contrastive", backbone, max_length=41)
    assert max(len(ids["input_ids"]) for row in task.encode({"image": [b""], "captions": [["wet " * 60]]})
               for ids in row["captions"]) == 40


def test_a_method_trains_on_pairs(folder: str, tmp_path: Path) -> None:
    rows = {"train": table(16), "validation": table(4, 100), "test": table(6, 200)}
    run = thrifty.tune(folder, rows, "lora", tmp_path / "run", task="contrastive", epochs=1, batch=8, rate=1e-3, progress=False)
    assert run.metrics["metric"] == "recall_at_1" and "text_to_image_at_5" in run.metrics["test"]
    again = predict(tmp_path / "run", rows, split="test")
    assert [len(row["prediction"]) for row in again] == [len(captions) for captions in rows["test"]["captions"]]
    assert all(-1 <= cosine <= 1 for row in again for cosine in row["prediction"])

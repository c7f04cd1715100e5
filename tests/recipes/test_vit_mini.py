"""The recipe of `vit-mini`, on pictures made here: what the teacher saw, start values, resuming bit for bit, what is published."""
from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T

pytest.importorskip("PIL")
from PIL import Image  # noqa: E402

from thrifty.core.errors import BrokenArtifact, ThriftyError  # noqa: E402
from thrifty.models import load  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from recipes.vit_mini import fetch, pretrain, publish, pupil, teach, views  # noqa: E402
from recipes.vit_mini.recipe import Recipe  # noqa: E402

SMALL = Recipe(steps=6, width=32, depth=2, heads=2, batch={"cifar10": 4, "mnist": 2, "fashion_mnist": 2}, held=10, teacher_side=32)


def noise(*shape: int, seed: int = 0, top: int = 256) -> Any:
    return np.random.default_rng(seed).integers(0, top, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    for i, (name, shape) in enumerate((("cifar10", (32, 32, 3)), ("mnist", (28, 28)), ("fashion_mnist", (28, 28)))):
        labels = {split: np.arange(n, dtype=np.uint8) % 10 for split, n in (("train", 60), ("test", 20))}
        np.savez(folder / f"{name}.npz", train=noise(60, *shape, seed=i), train_labels=labels["train"],
                 test=noise(20, *shape, seed=9 + i), test_labels=labels["test"])
    torch.manual_seed(0)
    T.MobileNetV2Model(T.MobileNetV2Config(depth_multiplier=0.1, tf_padding=False)).save_pretrained(folder / "mobilenetv2")
    teach.teach(folder, SMALL)
    return folder


def test_the_teacher_saw_pictures_and_their_mirror_images(cache: Path) -> None:
    kept, centre, spread = teach.read(cache, SMALL)
    assert kept.shape[:2] == (2, 60) and kept.dtype == np.float16
    teacher = T.AutoModel.from_pretrained(cache / "mobilenetv2").eval()
    picture = np.load(cache / "cifar10.npz")["train"][7]
    for view, held in enumerate((picture, picture[:, ::-1])):
        x = (torch.from_numpy(held.copy()).permute(2, 0, 1)[None] / 255 - torch.tensor(teach.MEAN).view(3, 1, 1))
        with torch.no_grad():
            wanted = teacher(x / torch.tensor(teach.STD).view(3, 1, 1)).pooler_output[0]
        torch.testing.assert_close(torch.from_numpy(kept[view, 7]).float(), wanted, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(centre, torch.from_numpy(kept[0].astype(np.float32).mean(axis=0)))
    note = cache / "mobilenetv2-32.json"
    assert json.loads(note.read_text()) == {"done": 120, "of": 120}
    note.write_text(json.dumps({"done": 60, "of": 120}))
    with pytest.raises(FileNotFoundError, match="not complete"):
        teach.read(cache, SMALL)
    before = kept.copy()
    teach.teach(cache, SMALL)
    assert (teach.read(cache, SMALL)[0] == before).all()


def test_start_values() -> None:
    torch.manual_seed(0)
    pictures = torch.nn.functional.avg_pool2d(torch.randn(200, 3, 36, 36), 5, stride=1)
    weight = pupil.whiten(pictures, torch.Size((64, 3, 4, 4)))
    seen = torch.nn.functional.conv2d(pictures, weight, stride=4).flatten(2).transpose(1, 2).flatten(0, 1)
    values = torch.linalg.eigvalsh(torch.cov(seen.T))
    assert (values[:16].abs() < 1e-3).all(), "48 numbers cannot fill 64 directions"
    assert (values < 1.001).all() and values[-1] > 0.8
    waves = pupil.waves(8, 32)[0]
    assert waves.shape == (65, 32) and not waves[0].any()
    torch.testing.assert_close(waves[1:].square().sum(1), torch.full((64,), 16.0))
    built = pupil.Pupil(SMALL, {"cifar10": 10}, 5)
    attention = built.trunk.layers[0].attention
    with torch.no_grad():
        pupil.mimic(attention)
    for head in (0, 1):
        rows = slice(16 * head, 16 * head + 16)
        product = attention.q_proj.weight[rows].T @ attention.k_proj.weight[rows]
        assert torch.linalg.matrix_rank(product) == 16 and float(product.trace()) > 0
    assert float((attention.v_proj.weight.T @ attention.o_proj.weight.T).trace()) == pytest.approx(-0.4 * 32, rel=0.25)


def test_views_are_drawn_from_the_source_alone() -> None:
    color, grey = torch.from_numpy(noise(6, 32, 32, 3)), torch.from_numpy(noise(6, 28, 28))
    first, again = (views.color_views(color, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], views.color_views(color, torch.Generator())[0])
    plain = views.plain_views(color)
    torch.testing.assert_close(plain, color.permute(0, 3, 1, 2) / 127.5 - 1)
    for seen, mirrored, whole in zip(*first, plain, strict=True):
        inner = (seen.flip(2) if mirrored else seen)[:, 8:24, 8:24]  # somewhere in the picture, moved by up to four pixels
        found = [(inner - whole[:, i : i + 16, j : j + 16]).abs().max() for i in range(4, 13) for j in range(4, 13)]
        assert min(found) < 1e-6
    moved = views.grey_views(grey, torch.Generator().manual_seed(1), True)
    assert moved.shape == (6, 3, 32, 32) and moved.min() >= -1.001 and moved.max() <= 1.001
    assert torch.equal(moved[:, 0], moved[:, 2])


def test_a_training_that_was_stopped_goes_on_bit_for_bit(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "SAVED", 2)
    monkeypatch.setattr(pretrain, "LOGGED", 1)
    whole = pretrain.Training(cache, tmp_path / "whole", SMALL)
    assert whole.run(60)
    stopped = pretrain.Training(cache, tmp_path / "parts", SMALL)
    learn = stopped.learn

    def until_five() -> Any:
        if stopped.step == 5:
            raise KeyboardInterrupt
        return learn()

    monkeypatch.setattr(stopped, "learn", until_five)
    with pytest.raises(KeyboardInterrupt):
        stopped.run(60)
    assert not pretrain.Training(cache, tmp_path / "parts", SMALL).run(0)
    assert pretrain.Training(cache, tmp_path / "parts", SMALL).run(60)
    ends = [pretrain.read_checkpoint(tmp_path / name) for name in ("whole", "parts")]
    assert ends[0] and ends[1] and ends[0][1].keys() == ends[1][1].keys()
    assert all(torch.equal(tensor, ends[1][1][name]) for name, tensor in ends[0][1].items())
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("whole", "parts")]
    told = [[(line["step"], line.get("loss"), line.get("accuracy")) for line in log] for log in logs]
    assert told[0] == told[1] and len(told[0]) == 7
    with pytest.raises(ThriftyError, match="choose another folder"):
        pretrain.Training(cache, tmp_path / "parts", Recipe(**{**SMALL.plain(), "rate": 0.1})).run(1)


def test_what_is_published_loads_like_any_model(cache: Path, tmp_path: Path) -> None:
    training = pretrain.Training(cache, tmp_path / "out", SMALL)
    with pytest.raises(ThriftyError, match="is not over"):
        publish.publish(cache, tmp_path / "out", tmp_path / "home")
    training.run(60)
    facts = publish.publish(cache, tmp_path / "out", tmp_path / "home")
    backbone = load(str(tmp_path / "home"), "image-classification", ["no", "yes"])
    assert backbone.source["new_tensors"] == ["classifier.weight", "classifier.bias"]
    assert backbone.source["image"]["size"] == {"height": 32, "width": 32} and backbone.source["image"]["resample"] == 3
    for name, tensor in training.pupil.trunk.state_dict().items():
        assert torch.equal(tensor.half().float(), backbone.model.base_model.state_dict()[name]), name
    card = (tmp_path / "home" / "README.md").read_text()
    assert f"{facts['parameters']:,}" in card and "cannot do" in card and "48 pictures in all" in card
    pixels = views.plain_views(torch.from_numpy(np.load(cache / "mnist.npz")["test"]))
    with torch.inference_mode():
        said = publish.rebuild(SMALL, pretrain.read_checkpoint(tmp_path / "out")[1]).answers["mnist"](  # type: ignore[index]
            backbone.model.base_model(pixels).last_hidden_state[:, 0]).argmax(1)
    near = float((said.numpy() == np.arange(20) % 10).mean())  # PIL rounds what it resizes to whole numbers, this does not
    assert facts["measured"]["mnist"]["accuracy"] == pytest.approx(near, abs=0.1)


def test_packages_are_read_as_their_makers_wrote_them(tmp_path: Path) -> None:
    def pack(path: Path, files: dict[str, bytes]) -> Path:
        with tarfile.open(path, "w:gz") as held:
            for name, data in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                held.addfile(entry, io.BytesIO(data))
        return path

    def sprite(pictures: Any) -> bytes:
        held = io.BytesIO()
        Image.fromarray(pictures.reshape(len(pictures), 1024, 3)).save(held, "PNG")
        return held.getvalue()

    color = noise(12, 32, 32, 3)
    files = {f"package/data_batch_{i + 1}.png": sprite(color[2 * i : 2 * i + 2]) for i in range(5)}
    files |= {"package/test_batch.png": sprite(color[10:]), "package/train_lables.json": json.dumps(list(range(10))).encode(),
              "package/test_lables.json": b"[3, 4]"}
    found = fetch.read_cifar(pack(tmp_path / "cifar.tgz", files))
    assert (found["train"] == color[:10]).all() and (found["test"] == color[10:]).all()
    assert found["train_labels"].tolist() == list(range(10)) and found["test_labels"].tolist() == [3, 4]
    grey = noise(3, 28, 28)
    files = {f"package/data/{part}-images-idx3-ubyte": bytes(16) + grey.tobytes() for part in ("train", "t10k")}
    files |= {f"package/data/{part}-labels-idx1-ubyte": bytes(8) + b"\1\2\3" for part in ("train", "t10k")}
    found = fetch.read_mnist(pack(tmp_path / "mnist.tgz", files))
    assert (found["test"] == grey).all() and found["train_labels"].tolist() == [1, 2, 3]


def test_another_package_than_the_recipe_was_written_for_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tgz").write_bytes(b"other")
    with pytest.raises(BrokenArtifact, match="sha256 differs"):
        fetch.Package(("false",), "x.tgz", hashlib.sha256(b"this").hexdigest()).get(tmp_path)

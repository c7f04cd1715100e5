"""From folders of pictures by class to answers, through a saved CLIP: zero-shot, tuning, the command line, and what is refused."""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T
import two_towers as two
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import thrifty
from thrifty.cli.main import run as thrifty_run
from thrifty.core.errors import BadData, BrokenArtifact, NoSuchSetting, Unfit
from thrifty.data import Dataset, read
from thrifty.data.halves import halves
from thrifty.models import load
from thrifty.train import base_to_new, predict, zero_shot

LABELS = ["cat", "dog", "sea horse"]


def save(folder: Path, kind: str) -> Path:
    """A small model of that kind as transformers saves it, with a tokenizer of words and an image processor."""
    model = getattr(two, kind)(labels=LABELS)
    trunk = model.towers.trunk
    words = ["[PAD]", *two.WORDS, "[UNK]"]
    inner = Tokenizer(models.WordLevel({**{word: i for i, word in enumerate(words)}, "<s>": 62, "</s>": 63}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    begin = "<s> " if kind == "clip" else ""
    inner.post_processor = processors.TemplateProcessing(single=f"{begin}$A </s>", special_tokens=[("<s>", 62), ("</s>", 63)])
    trunk.save_pretrained(folder)
    T.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>",
                              model_max_length=24).save_pretrained(folder)
    T.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def draw(folder: Path, count: int, shade: int) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        noise = np.random.default_rng([shade, i]).integers(0, 60, (20, 20, 3)) + [shade, 195 - shade, 60]
        Image.fromarray(noise.astype(np.uint8)).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def home(tmp_path_factory: Any) -> Path:
    place = tmp_path_factory.mktemp("towers")
    save(place / "clip", "clip")
    save(place / "siglip", "siglip")
    for k, name in enumerate(("cat", "dog", "sea_horse")):
        draw(place / "data" / name, 12, 90 * k)
    draw(place / "loose", 3, 10)
    return place


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_folder_is_loaded_with_both_towers(home: Path, kind: str) -> None:
    backbone = load(str(home / kind), "image-classification", LABELS)
    assert backbone.source["new_tensors"] == [] and "by their names" in backbone.source["notes"][0]
    pixels = two.pictures()
    assert torch.equal(two.logits(backbone.model, pixels), two.logits(getattr(two, kind)(labels=LABELS), pixels))


def test_zero_shot_on_a_folder(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = zero_shot(str(home / "clip"), home / "loose", LABELS, templates="a photo of a {}.|art of the {}.")
    backbone = load(str(home / "clip"), "image-classification", LABELS)
    backbone.model.classify(LABELS, ["a photo of a {}.", "art of the {}."])
    opened = [Image.open(home / "loose" / f"{i}.png") for i in range(3)]
    pixels = torch.cat([backbone.preprocess(images=picture, return_tensors="pt")["pixel_values"] for picture in opened])
    wanted = two.logits(backbone.model, pixels).double().softmax(-1)
    assert [row["prediction"] for row in found] == [LABELS[i] for i in wanted.argmax(-1)]
    torch.testing.assert_close(torch.tensor([row["scores"] for row in found], dtype=torch.float64), wanted, rtol=1e-4, atol=1e-6)
    assert [Path(row["input"]).name for row in found] == ["0.png", "1.png", "2.png"]
    thrifty_run(["predict", "--method", "zero-shot", "--classes", "cat,dog, sea horse", "--model", str(home / "siglip"), "--data",
                 str(home / "data")])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 36 and {row["prediction"] for row in rows} <= set(LABELS)


def test_learning_from_views_of_each_picture(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["thrifty.train.zero_shot"], "VIEWS", 12)
    backbone = load(str(home / "clip"), "image-classification", LABELS)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    found = zero_shot(backbone, home / "loose", LABELS, method="tpt")
    again = zero_shot(backbone, home / "loose", LABELS, method="tpt")
    plain = zero_shot(backbone, home / "loose", LABELS)
    assert found == again and found[0]["scores"] != plain[0]["scores"]
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.model.state_dict().items())
    for wrong in ({"method": "tpt", "templates": "clip-7"}, {"method": "tp"}):
        with pytest.raises(NoSuchSetting, match="templates|method"):
            zero_shot(backbone, home / "loose", LABELS, **wrong)


def test_tuned_and_asked_again(home: Path, tmp_path: Path) -> None:
    done = thrifty.tune(str(home / "clip"), str(home / "data"), {"name": "promptsrc", "text_depth": 2, "image_depth": 1,
                        "text_length": 2, "templates": "a photo of a {}.|art of the {}.", "snapshots": 3}, tmp_path / "run",
                        epochs=3, batch=8, templates="a bad photo of a {}.", progress=False, rate=5e-3)
    assert done.metrics["labels"] == ["cat", "dog", "sea_horse"]
    rivals = {one["name"]: one["test"]["accuracy"]["value"] for one in done.metrics["baselines"]}
    assert set(rivals) == {"majority", "untrained", "linear"}
    again = predict(tmp_path / "run", home / "loose")
    assert len(again) == 3 and {row["prediction"] for row in again} <= {"cat", "dog", "sea_horse"}
    about = json.loads((tmp_path / "run" / "adapter" / "adapter.json").read_text())["about"]
    assert about["limits"]["templates"] == ["a bad photo of a {}."]


@pytest.mark.parametrize("method", [{"name": "coop", "length": 4}, {"name": "maple", "depth": 2}, {"name": "prograd", "length": 6},
                                    {"name": "defo", "queries": 6, "length": 2}, {"name": "cocoop", "reduction": 4}],
                         ids=lambda method: method["name"])
def test_every_kind_of_loss_trains(home: Path, tmp_path: Path, method: dict[str, Any]) -> None:
    done = thrifty.tune(str(home / "clip"), str(home / "data"), method, tmp_path / "run", epochs=2, batch=8, baselines=False,
                        progress=False, shots=3)
    assert done.metrics["items"]["train"] == 9 and done.metrics["items"]["validation"] == 3
    assert 0 <= done.metrics["test"]["accuracy"]["value"] <= 1
    assert predict(tmp_path / "run", home / "loose")[0]["scores"]


def test_what_is_refused(home: Path, tmp_path: Path) -> None:
    model = str(home / "clip")
    with pytest.raises(BadData, match="at least two labels"):
        zero_shot(model, home / "loose", ["cat"])
    with pytest.raises(BadData, match="repeat: 'cat'"):
        zero_shot(model, home / "loose", ["cat", "cat"])
    with pytest.raises(BadData, match="class 'dog dog"):
        zero_shot(model, home / "loose", ["cat", " ".join(["dog"] * 30)])
    draw(tmp_path / "mixed", 2, 5)
    (tmp_path / "mixed" / "notes.txt").write_text("no picture")
    with pytest.raises(BadData, match="what is none: notes.txt"):
        zero_shot(model, tmp_path / "mixed", LABELS)
    (tmp_path / "mixed" / "notes.txt").rename(tmp_path / "mixed" / "notes.png")
    with pytest.raises(BadData, match=r"row 2: .*notes.png cannot be decoded"):
        zero_shot(model, tmp_path / "mixed", LABELS)
    for words, why in ((["--classes", "a,b"], "required: run"), ([], "required: run"),
                       (["--method", "lora"], "zero-shot or tpt, not"), (["--method", "zero-shot", "--model", model], "--classes"),
                       (["runs/x", "--method", "zero-shot", "--model", model, "--classes", "a,b"], "belongs to an adapter")):
        with pytest.raises(NoSuchSetting, match=why):
            thrifty_run(["predict", *words, "--data", str(home / "loose")])
    with pytest.raises(Unfit, match="CLIP or SigLIP"):
        zero_shot(thrifty.models.wrap(torch.nn.Linear(2, 2)), home / "loose", LABELS)
    broken = save(tmp_path / "broken", "clip")
    trunk = T.CLIPTextModelWithProjection(T.CLIPModel.from_pretrained(broken).config.text_config)
    config = (broken / "config.json").read_text()
    trunk.save_pretrained(broken)
    (broken / "config.json").write_text(config)
    with pytest.raises(BrokenArtifact, match="lacks"):
        load(str(broken), "image-classification", LABELS)


def test_half_of_the_classes_is_learned_and_the_other_is_known_by_name(tmp_path: Path) -> None:
    model, data = str(save(tmp_path / "clip", "clip")), tmp_path / "data"
    for k, name in enumerate(("cat", "dog", "face", "leopard", "sea_horse")):
        draw(data / name, 10, 40 * k)
    found = base_to_new(model, str(data), {"name": "coop", "length": 3}, tmp_path / "run", shots=4, epochs=2, batch=6, seeds=2,
                        progress=False)
    assert json.loads((tmp_path / "run" / "base_to_new.json").read_text()) == found and len(found["seeds"]) == 2
    run = thrifty.train.Run.read(tmp_path / "run")
    assert run.metrics["labels"] == ["cat", "dog", "face"] and run.metrics["items"]["train"] == 12
    base, new = found["base"], found["new"]
    assert found["harmonic_mean"] == pytest.approx(2 * base * new / (base + new) if base + new else 0)
    full = read(str(data), shots=4)
    test = full.test()
    rows = [i for i, label in enumerate(test["label"]) if label >= 3]
    pictures = [test["image"][i] for i in rows]
    right = ["leopard" if test["label"][i] == 3 else "sea_horse" for i in rows]
    said = zero_shot(model, {"image": pictures}, ["leopard", "sea_horse"])
    share = np.mean([one["prediction"] == wanted for one, wanted in zip(said, right, strict=True)])
    assert found["zero_shot"]["new"] == pytest.approx(share)
    with pytest.raises(Unfit, match="has nothing for 'leopard'"):
        base_to_new(model, str(data), {"name": "coop-csc", "length": 2}, tmp_path / "own", epochs=1, baselines=False,
                    progress=False)
    with pytest.raises(BadData, match="at least four"):
        halves(Dataset({"train": {}, "validation": {}, "test": {}}, {}, "image-classification", ["cat", "dog", "face"]))


@pytest.mark.parametrize("method", ["coop", "cocoop", "prograd", "clip-adapter", "taskres"])
def test_pictures_go_through_the_image_tower_once(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Prompts change sentences, and these adapters what comes out of the tower: one vector per picture is all that is kept."""
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "stores"))
    runs = [thrifty.tune(str(home / "clip"), str(home / "data"), method, tmp_path / cache, cache=cache, epochs=2, batch=8,
                         progress=False, baselines=False) for cache in ("off", "auto")]
    plain, kept = ([step["loss"] for step in run.metrics["seeds"][0]["history"]] for run in runs)
    about = runs[1].metrics["cache"]
    assert about["used"] and "one vector per example" in about["words"] and about["places"] == 1, about
    assert kept == pytest.approx(plain, rel=1e-4)

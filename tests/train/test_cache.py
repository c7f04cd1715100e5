"""`tune` with a cache: the run is the one without, for less; what it did is in the files."""
from __future__ import annotations

import io
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import small_jobs
import torch
from safetensors.torch import load_file

import thrifty
from thrifty.cli.main import run as command
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.tasks.image_classification import ImageClassification
from thrifty.train import Run
from thrifty.train.training import Training

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
import tiny_folders  # noqa: E402

QUICK: dict[str, Any] = {"epochs": 2, "batch": 16, "rate": 1e-2, "progress": False, "baselines": False, "patience": 0}
TOP = {"name": "lora", "where": "attn.q[1:]|attn.v[1:]", "dropout": 0.1}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    small_jobs.bert(folder / "bert", dropout=0.0)
    small_jobs.bert(folder / "dropping")
    small_jobs.table(folder / "table", train=60)
    return folder


@pytest.fixture(autouse=True)
def stores(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THRIFTY_CACHE", str(place / "stores"))
    return place / "stores" / "trunk"


def tune(place: Path, out: Path, method: Any = TOP, model: str = "bert", **more: Any) -> Run:
    return thrifty.tune(str(place / model), str(place / "table"), method, out, **{**QUICK, **more})


def alike(one: Run, other: Run) -> None:
    for a, b in zip(one.metrics["seeds"], other.metrics["seeds"], strict=True):
        assert [s["loss"] for s in a["history"]] == pytest.approx([s["loss"] for s in b["history"]], rel=1e-4)
        assert [e["step"] for e in a["evaluations"]] == [e["step"] for e in b["evaluations"]]
    ours, theirs = (load_file(run.adapter / "adapter.safetensors") for run in (one, other))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=2e-5)


def test_several_seeds_and_accumulated_batches_are_those_without(place: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {"seeds": 2, "batch": 8, "accumulate": 2}
    plain, kept = tune(place, tmp_path / "plain", **more), tune(place, tmp_path / "kept", cache="auto", **more)
    alike(kept, plain)
    about = kept.metrics["cache"]
    assert "cache" not in plain.metrics and about["used"] and about["words"] == "1 of 2 blocks" and not about["reused"]
    assert "1 of 2 blocks" in (tmp_path / "kept" / "report.html").read_text()


def test_a_linear_probe_on_the_vector_it_reads(place: Path, tmp_path: Path) -> None:
    plain, kept = (tune(place, tmp_path / cache, "linear-probe", cache=cache) for cache in ("off", "auto"))
    alike(kept, plain)
    assert "classifier" in kept.metrics["cache"]["words"] and kept.metrics["cache"]["places"] == 1


def test_an_interrupted_run_goes_on_bit_for_bit(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more: dict[str, Any] = {"model": "dropping", "cache": 2, "checkpoint_every": 2}
    whole, step = tune(place, tmp_path / "whole", **more), Training._step

    def stop(self: Training) -> None:
        if self.log.step == 5:
            raise RuntimeError("enough")
        step(self)

    with monkeypatch.context() as patched:
        patched.setattr(Training, "_step", stop)
        with pytest.raises(RuntimeError, match="enough"):
            tune(place, tmp_path / "parts", **more)
    parts = tune(place, tmp_path / "parts", resume=True, **more)
    name = "adapter.safetensors"
    assert (parts.adapter / name).read_bytes() == (whole.adapter / name).read_bytes()
    assert parts.metrics["cache"]["reused"] and parts.metrics["cache"]["copies"] == 2
    assert any("2 draws were stored" in said for said in parts.metrics["warnings"])


def test_dropout_in_the_trunk_decides(place: Path, tmp_path: Path) -> None:
    plain, auto = (tune(place, tmp_path / cache, model="dropping", cache=cache) for cache in ("off", "auto"))
    about = auto.metrics["cache"]
    assert not about["used"] and "dropout acts in the frozen part" in about["words"]
    assert (auto.adapter / "adapter.safetensors").read_bytes() == (plain.adapter / "adapter.safetensors").read_bytes()
    still = tune(place, tmp_path / "still", model="dropping", cache="still", cache_as="int8")
    said = " ".join(still.metrics["warnings"])
    assert "was held still, as asked for" in said and "stored in int8" in said and 0 < still.metrics["cache"]["lost"] < 0.1


def test_what_cannot_be_kept_is_said(place: Path, tmp_path: Path) -> None:
    with pytest.raises(Unfit, match=r"cache='still'\): 'low-rank' acts on the output of"):
        tune(place, tmp_path / "a", "lora", cache="still")
    auto = tune(place, tmp_path / "b", "lora", cache="auto", epochs=1)
    assert not auto.metrics["cache"]["used"] and "'low-rank' acts on the output of" in auto.metrics["cache"]["words"]
    with pytest.raises(NoSuchSetting, match="cache must be off, auto, still or at least 1"):
        tune(place, tmp_path / "c", cache=0)
    with pytest.raises(NoSuchSetting, match="sometimes"):
        tune(place, tmp_path / "c", cache="sometimes")


def test_the_command_line_takes_words_and_numbers(place: Path, tmp_path: Path) -> None:
    words = ["tune", "--model", str(place / "dropping"), "--data", str(place / "table"), "--method", "linear-probe", "--quiet",
             "--no-baselines", "--epochs", "1", "--batch", "16"]
    command([*words, "--out", str(tmp_path / "a"), "--cache", "3"])
    command([*words, "--out", str(tmp_path / "b"), "--cache", "still", "--cache-as", "float16"])
    assert [Run.read(tmp_path / name).metrics["cache"]["setting"] for name in "ab"] == ["3", "still"]


def test_two_tasks_share_one_trunk(place: Path, tmp_path: Path) -> None:
    small_jobs.table(place / "second", train=40)
    data = {"one": str(place / "table"), "two": str(place / "second")}
    runs = [thrifty.tune(str(place / "bert"), data, TOP, tmp_path / cache, cache=cache, allow_leak=True, **QUICK)
            for cache in ("off", "auto")]
    assert runs[1].metrics["cache"]["used"], runs[1].metrics["cache"]
    alike(runs[1], runs[0])


# -- pictures -----------------------------------------------------------------------------------------------------------------
def pictures(count: int) -> dict[str, Any]:
    image = pytest.importorskip("PIL.Image")
    drawn, rows = random.Random(1), []
    for i in range(count):
        held, tone = io.BytesIO(), drawn.randint(0, 100) if i % 2 else drawn.randint(150, 255)
        made = image.new("RGB", (24, 24), (tone, tone, i))
        made.paste((i, tone // 2, 255 - i), (0, 0, 6, 12))
        made.save(held, "PNG")
        rows.append({"image": held.getvalue(), "label": "dark" if i % 2 else "bright"})
    return {"train": rows[: count // 2], "validation": rows[count // 2 : -8], "test": rows[-8:]}


def test_pictures_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, read = str(tiny_folders.vit(tmp_path / "vit")), pictures(40), []
    prepare = ImageClassification._prepare

    def count(self: Any, example: Any) -> Any:
        if "pixels" not in example:
            read.append(example["row"])
        return prepare(self, example)

    monkeypatch.setattr(ImageClassification, "_prepare", count)
    runs, reads = [], []
    for cache in ("off", "auto"):
        runs.append(thrifty.tune(model, data, TOP, tmp_path / cache, cache=cache, **{**QUICK, "epochs": 6}))
        reads.append(len(read))
        read.clear()
    alike(runs[1], runs[0])
    assert reads[0] > 6 * 32 and reads[1] < 70
    varied = thrifty.tune(model, data, TOP, tmp_path / "varied", cache=2, augment="crop-flip", **QUICK)
    assert varied.metrics["cache"]["copies"] == 2

"""The main job from data to files, on a model of two layers: every number of the run is computed again by other means."""
from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import small_jobs
import torch

import thrifty
from thrifty.core.errors import BadData, NoSuchSetting, NoSuchSite, ThriftyError
from thrifty.models import load
from thrifty.report.schema import check, check_prediction
from thrifty.train import Run, Settings

QUICK: dict[str, Any] = {"epochs": 4, "batch": 8, "rate": 1e-2, "progress": False}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    small_jobs.bert(folder / "bert")
    small_jobs.table(folder / "table")
    return folder


def tune(place: Path, out: Path, **more: Any) -> Run:
    return thrifty.tune(str(place / "bert"), str(place / "table"), out=out, **{**QUICK, **more})


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    return tune(place, place / "run", epochs=8)


@pytest.fixture(scope="module")
def three(place: Path) -> Run:
    return tune(place, place / "three", seeds=3, epochs=4)


def lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]


def test_the_folder_explains_itself(run: Run, place: Path) -> None:
    assert {path.name for path in run.folder.iterdir()} == {
        "adapter", "config.json", "metrics.json", "environment.json", "data.json", "predictions.jsonl", "report.html"}
    metrics = check(json.loads((run.folder / "metrics.json").read_text()))
    assert dict(metrics) == run.metrics == Run.read(run.folder).metrics
    for i, row in enumerate(lines(run)):
        check_prediction(row, metrics, f"line {i}")
    about = json.loads((run.folder / "environment.json").read_text())
    assert about["packages"]["torch"] == torch.__version__ and about["precision"]["why"] and about["threads"] >= 1
    assert metrics["items"] == {"train": 96, "validation": 30, "test": 30}
    assert metrics["adapter_bytes"] == sum(f.stat().st_size for f in run.adapter.iterdir())


def test_it_learns_and_says_how_sure_it_is(run: Run, place: Path) -> None:
    rows = [line.rsplit(",", 1) for line in (place / "table" / "test.csv").read_text().splitlines()[1:]]
    said = lines(run)
    assert [row["input"] for row in said] == [text for text, _ in rows]
    assert [row["target"] for row in said] == [label for _, label in rows]
    right = sum(row["prediction"] == row["target"] for row in said) / len(said)
    found = run.metrics["test"]["accuracy"]
    assert found["value"] == pytest.approx(right) and found["low"] < right <= found["high"] and found["spread"] is None
    majority = {b["name"]: b for b in run.metrics["baselines"]}["majority"]
    trained = Counter(line.rsplit(",", 1)[1] for line in (place / "table" / "train.csv").read_text().splitlines()[1:])
    common = trained.most_common(1)[0][0]
    share = sum(label == common for _, label in rows) / len(rows)
    assert majority["test"]["accuracy"]["value"] == pytest.approx(share) and right > share
    assert majority["difference"]["value"] == pytest.approx(right - share)


def test_the_adapter_gives_the_predictions_that_were_reported(run: Run, place: Path) -> None:
    backbone = load(str(place / "bert"), "text-classification", run.metrics["labels"], seed=99)
    at = thrifty.load(backbone.model, run.adapter)
    assert at.about["task"] == "text-classification" and at.about["labels"] == ["light", "road", "water"]
    for row in lines(run)[:10]:
        batch = backbone.preprocess(row["input"], return_tensors="pt")
        with torch.no_grad():
            scores = backbone.model(**batch)["logits"].softmax(-1)[0]
        assert row["scores"] == pytest.approx(scores.tolist(), abs=1e-5)


def test_parameters_are_counted(run: Run, place: Path) -> None:
    backbone = load(str(place / "bert"), "text-classification", run.metrics["labels"])
    every = sum(p.numel() for p in backbone.model.parameters())
    new = sum(backbone.model.get_parameter(name).numel() for name in backbone.source["new_tensors"])
    tuner = 2 * 2 * (32 * 8 + 8 * 32)  # layers × (q, v) × (A and B)
    assert run.metrics["parameters"] == {"base": every, "tuner": tuner, "head": new}


@dataclass
class Ruined(thrifty.LoRA):
    """LoRA that loses everything in the last third of training."""

    def step(self, at: thrifty.Attachment, step: int, total: int) -> None:
        if step > 0.67 * total:
            for p in at.parameters():
                p.data.zero_()


def test_the_best_evaluation_is_kept(place: Path, tmp_path: Path) -> None:
    run = tune(place, tmp_path / "run", method=Ruined(), epochs=6, patience=0)
    seed = run.metrics["seeds"][0]
    values = [e["values"]["accuracy"] for e in seed["evaluations"]]
    best = next(e for e in seed["evaluations"] if e["values"]["accuracy"] == max(values))
    assert seed["best_step"] == best["step"] and values[-1] < max(values)
    again = thrifty.train.predict(run.folder, str(place / "table" / "validation.csv"))
    labels = [line.rsplit(",", 1)[1] for line in (place / "table" / "validation.csv").read_text().splitlines()[1:]]
    right = sum(row["prediction"] == label for row, label in zip(again, labels, strict=True)) / len(labels)
    assert right == pytest.approx(max(values))


def test_early_stopping(place: Path, tmp_path: Path) -> None:
    run = tune(place, tmp_path / "run", rate=0.3, schedule="constant", epochs=40, patience=2)
    seed = run.metrics["seeds"][0]
    values = [e["values"]["accuracy"] for e in seed["evaluations"]]
    assert seed["stopped"] == "early" and len(values) < 40
    assert max(values[-2:]) <= max(values[:-2]) and len(values) - 1 - values.index(max(values)) == 2


def test_the_same_seed_gives_the_same_bytes_whatever_happened_before(run: Run, place: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = tune(place, tmp_path / "again", epochs=8)
    assert torch.equal(state, torch.get_rng_state())  # the caller's random state is his
    for name in ("adapter/adapter.safetensors", "adapter/adapter.json", "predictions.jsonl"):
        assert (again.folder / name).read_bytes() == (run.folder / name).read_bytes()
    other = tune(place, tmp_path / "other", epochs=8, seed=1)
    assert (other.folder / "predictions.jsonl").read_bytes() != (run.folder / "predictions.jsonl").read_bytes()


def test_config_json_repeats_the_run(run: Run, place: Path, tmp_path: Path) -> None:
    config = json.loads((run.folder / "config.json").read_text())
    places = {key: config.pop(key) for key in ("model", "data", "method")}
    again = thrifty.tune(places["model"], places["data"], places["method"], tmp_path / "again", settings=Settings.make(config),
                         progress=False)
    assert small_jobs.numbers(again.folder) == small_jobs.numbers(run.folder)


def test_three_seeds_have_a_mean_a_spread_and_an_interval(three: Run) -> None:
    m = three.metrics
    assert [s["seed"] for s in m["seeds"]] == [0, 1, 2]
    values = [s["test"]["accuracy"]["value"] for s in m["seeds"]]
    by_hand = [sum(r["prediction"] == r["target"] for r in lines(three) if r["seed"] == seed) / 30 for seed in range(3)]
    assert values == pytest.approx(by_hand) and len(set(values)) > 1
    found, spread = m["test"]["accuracy"], statistics.stdev(values)
    half = 4.302652729911275 * spread / math.sqrt(3)  # Student's t with 2 degrees of freedom, 97.5 %
    assert found["value"] == pytest.approx(statistics.mean(values)) and found["spread"] == pytest.approx(spread)
    assert (found["low"], found["high"]) == pytest.approx((found["value"] - half, found["value"] + half))
    assert all(s["test"]["accuracy"]["low"] < s["test"]["accuracy"]["high"] for s in m["seeds"])
    assert m["timing"]["steps"] == sum(s["history"][-1]["step"] for s in m["seeds"])


def test_the_kept_adapter_is_of_the_seed_that_was_best_on_validation(three: Run) -> None:
    best = max(three.metrics["seeds"], key=lambda s: max(e["values"]["accuracy"] for e in s["evaluations"]))["seed"]
    parts = [(three.folder / f"seed-{seed}" / "adapter" / "adapter.safetensors").read_bytes() for seed in range(3)]
    assert len(set(parts)) == 3 and (three.adapter / "adapter.safetensors").read_bytes() == parts[best]
    assert not list(three.folder.glob("seed-*/checkpoint"))


def test_one_seed_of_several_is_that_seed_alone(three: Run, place: Path, tmp_path: Path) -> None:
    alone = tune(place, tmp_path / "alone", seed=1, epochs=4)
    again, before = (folder / "adapter" / "adapter.safetensors" for folder in (alone.folder, three.folder / "seed-1"))
    assert again.read_bytes() == before.read_bytes()


def test_a_module_comes_back_as_it_was(place: Path, tmp_path: Path) -> None:
    backbone = load(str(place / "bert"), "text-classification", ["light", "road", "water"])
    before = {name: t.clone() for name, t in backbone.model.state_dict().items()}
    run = thrifty.tune(backbone, str(place / "table"), out=tmp_path / "run", seeds=2, **QUICK)
    after = backbone.model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], t) for name, t in before.items())
    assert not thrifty.attachments(backbone.model)
    thrifty.load(backbone.model, run.adapter)


def test_the_printout_has_the_numbers(run: Run) -> None:
    said = str(run)
    for word in ("accuracy", "30 untouched test items", "the majority class", "frozen features with a linear head", "2,048", "99",
                 "adapter on disk", "peak memory", "training", "report.html"):
        assert word in said, word


def test_folders_that_are_not_ours_are_left_alone(place: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear")
    for more in ({}, {"overwrite": True}):
        with pytest.raises(ThriftyError, match="dear.txt"):
            tune(place, tmp_path / "letters", **more)
    (tmp_path / "file").write_text("")
    with pytest.raises(ThriftyError, match="is a file"):
        tune(place, tmp_path / "file")
    with pytest.raises(ThriftyError, match="finished run.*--overwrite"):
        tune(place, run.folder)
    with pytest.raises(ThriftyError, match="contradict"):
        tune(place, run.folder, overwrite=True, resume=True)
    assert (tmp_path / "letters" / "dear.txt").read_text() == "dear" and (run.folder / "metrics.json").exists()


def test_mistakes_are_named_before_anything_trains(place: Path, tmp_path: Path) -> None:
    with pytest.raises(NoSuchSetting, match="Did you mean 'epochs'"):
        tune(place, tmp_path / "a", epoch=3)
    with pytest.raises(NoSuchSetting, match="Did you mean 'accuracy'"):
        tune(place, tmp_path / "a", metric="acuracy")
    with pytest.raises(NoSuchSetting, match="minilm"):
        thrifty.tune(str(tmp_path / "nowhere"), str(place / "table"), out=tmp_path / "a", progress=False)
    with pytest.raises(BadData, match="table"):
        thrifty.tune(str(place / "bert"), str(place / "tabel"), out=tmp_path / "a", progress=False)


def test_leaks_are_refused_or_told(place: Path, tmp_path: Path) -> None:
    table = small_jobs.table(tmp_path / "table")
    (table / "test.csv").write_text((table / "test.csv").read_text() + (table / "train.csv").read_text().splitlines()[1] + "\n")
    with pytest.raises(BadData, match="train"):
        thrifty.tune(str(place / "bert"), str(table), out=tmp_path / "a", **QUICK)
    run = thrifty.tune(str(place / "bert"), str(table), out=tmp_path / "b", allow_leak=True, **QUICK)
    assert any("different splits (1 pairs)" in warning for warning in run.metrics["warnings"])


def test_what_was_cut_is_told(place: Path, tmp_path: Path) -> None:
    run = tune(place, tmp_path / "run", max_length=6, baselines=False)
    assert any("longer than 6 tokens" in warning for warning in run.metrics["warnings"])
    assert any("No baseline" in warning for warning in run.metrics["warnings"]) and run.metrics["baselines"] == []


def test_a_mistake_leaves_nothing_to_resume(place: Path, tmp_path: Path) -> None:
    with pytest.raises(NoSuchSite, match="attn.w"):
        tune(place, tmp_path / "a", method=thrifty.LoRA(where="attn.w"))
    assert tune(place, tmp_path / "a", epochs=1).metrics["test"]  # no --overwrite is asked for


def test_a_module_without_a_tokenizer_is_told_what_is_missing(place: Path, tmp_path: Path) -> None:
    with pytest.raises(NoSuchSetting, match="no tokenizer"):
        thrifty.tune(torch.nn.Linear(2, 2), str(place / "table"), out=tmp_path / "a", progress=False)

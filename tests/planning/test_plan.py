"""Plans: what is said of many methods at once, and what would make those fit that do not."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small_jobs
import torch

import thrifty
from thrifty.cli import main
from thrifty.core.errors import BadData, NoSuchSetting, OverBudget, ThriftyError
from thrifty.planning import Machine, Plan
from thrifty.train.guard import Guard
from thrifty.train.training import Training

RATES = ("product float32", "batched float32", "attention float32", "convolution float32", "move", "curve", "draw")
MACHINE = Machine({"name": "a machine", "threads": 1}, 1e-6, {kind: [(1.0, 1e9)] for kind in RATES})
LLAMA_7B = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
            "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 2048,
            "tie_word_embeddings": False, "dtype": "float16"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    small_jobs.bert(folder / "bert")
    small_jobs.table(folder / "table")
    (folder / "drawing").mkdir()
    (folder / "drawing" / "config.json").write_bytes((folder / "bert" / "config.json").read_bytes())
    (folder / "llama").mkdir()
    (folder / "llama" / "config.json").write_text(json.dumps({**LLAMA_7B, "num_hidden_layers": 2}))
    return folder


def plan(place: Path, methods: Any, model: str = "bert", **more: Any) -> Plan:
    return thrifty.plan(str(place / model), methods, machine=MACHINE, precision="float32", device="cpu", **more)


def test_methods_are_ranked_and_those_that_cannot_be_are_listed_with_the_reason(place: Path) -> None:
    asked = ["full", "lora", "bitfit", "adapter-fusion", "vpt", "spt"]
    found = plan(place, asked, rows=100)
    assert [each.memory.peak for each in found.forecasts] == sorted(each.memory.peak for each in found.forecasts)
    assert {each.method for each in found.forecasts} | set(found.refused) == set(asked)
    assert set(found.refused) >= {"adapter-fusion", "vpt"} and "patches" in found.refused["vpt"]
    assert all(each.fits and each.time is not None and each.time.total is not None for each in found.forecasts)
    plain = json.loads(json.dumps(found.plain()))
    assert [each["method"] for each in plain["forecasts"]] == [each.method for each in found.forecasts]
    for name in ("full", "lora", "adapter-fusion", "Not predicted"):
        assert name in str(found)


def test_a_folder_without_weights_or_tokenizer_is_enough(place: Path) -> None:
    one, other = (plan(place, "lora", model, task="text-classification", length=16) for model in ("drawing", "bert"))
    assert one.forecasts[0].time is not None and one.forecasts[0].time.total is None
    assert one.forecasts[0].trainable == other.forecasts[0].trainable > 0


def test_a_base_counts_as_it_is_loaded_whatever_it_was_saved_as(place: Path) -> None:
    found = plan(place, "lora", "llama", batch=1, length=8).forecasts[0]
    block = 4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096
    base = 2 * block + 2 * 32000 * 4096 + 4096
    lora = 2 * 2 * 8 * (4096 + 4096)  # two blocks, q and v, rank 8
    assert found.trainable == lora and found.adapter == 4 * lora
    assert found.memory.weights == pytest.approx(4 * (base + lora), abs=4096)  # and a few numbers of the rotation
    assert (found.memory.gradients, found.flops) == (4 * lora, 0)


def test_steps_and_time_follow_the_rows(place: Path) -> None:
    few, many = (plan(place, "lora", rows=rows, epochs=2.0, batch=8).forecasts[0] for rows in (80, 160))
    assert (few.steps, many.steps) == (20, 40)
    assert few.time is not None and many.time is not None and few.time.total is not None and many.time.total is not None
    assert few.time.step == many.time.step and few.time.total > 20 * few.time.step
    assert many.time.total == pytest.approx(2 * few.time.total, rel=0.1)


def test_without_rows_a_budget_of_time_says_how_many_steps_it_allows(place: Path) -> None:
    found = plan(place, ["lora", "full"], time="1h")
    for each in found.forecasts:
        assert each.fits and each.time is not None and each.time.total is None
        assert each.affordable == int(3600 / each.time.step) and f"{each.affordable:,} steps" in str(found)
    short = plan(place, ["lora", "full"], time=1e-9)
    assert all(each.over == ("time",) and each.affordable == 0 for each in short.forecasts)
    assert "lora, full would fit with nothing" in str(short).replace("full, lora", "lora, full")


def test_real_rows_decide_length_labels_and_number(place: Path) -> None:
    found = plan(place, "lora", data=str(place / "table"))
    assert found.about["rows"] == [96, 30] and found.about["task"] == "text-classification"
    assert found.about["longest"] == max(len(text.split()) for text, _ in small_jobs.rows(156, 3)[:96]) + 2


def test_every_remedy_fits(place: Path) -> None:
    whole = plan(place, "full", batch=64, length=32).forecasts[0].memory
    limit = whole.step - whole.activations // 2 + whole.best
    found = plan(place, "full", batch=64, length=32, memory=limit).forecasts[0]
    assert found.over == ("memory",) and found.remedies
    for remedy in found.remedies:
        if remedy.settings:
            changed = {**remedy.settings}
            again = plan(place, "full", length=32, memory=limit, **{"batch": 64, **changed}).forecasts[0]
            assert again.fits and again.memory.peak == remedy.peak
    assert "would fit with" in str(plan(place, "full", batch=64, length=32, memory=limit))
    smaller = next(remedy for remedy in found.remedies if "batch" in remedy.settings).settings
    assert smaller["batch"] * smaller["accumulate"] >= 64


def test_too_long_is_over_time_and_fewer_epochs_would_do(place: Path) -> None:
    long = plan(place, "lora", rows=1000, epochs=8.0).forecasts[0].time
    assert long is not None and long.total is not None
    found = plan(place, "lora", rows=1000, epochs=8.0, time=long.total / 2).forecasts[0]
    assert found.over == ("time",)
    (remedy,) = (each for each in found.remedies if "epochs" in each.settings)
    assert 3 <= remedy.settings["epochs"] <= 4 and remedy.total is not None and remedy.total <= long.total / 2


def test_a_linear_probe_that_takes_too_long_would_do_with_its_trunk_computed_once(place: Path) -> None:
    long = plan(place, "linear-probe", rows=1000, epochs=10.0, batch=10).forecasts[0].time
    assert long is not None and long.total is not None
    found = plan(place, "linear-probe", rows=1000, epochs=10.0, batch=10, time=long.total / 4).forecasts[0]
    kept = next(each for each in found.remedies if each.settings == {"cache": "still"})
    assert kept.total is not None and long.total / 30 < kept.total < long.total / 4
    full = plan(place, "full", rows=1000, epochs=10.0, batch=10, time=long.total / 4).forecasts[0]
    assert not any("cache" in each.settings for each in full.remedies)  # nothing of it is frozen


@pytest.mark.parametrize(("more", "says"), [
    ({"memory": "2GIP"}, "GIP"), ({"memory": "-1GiB"}, "more than nothing"), ({"rows": 0}, "rows"),
    ({"bacth": 8}, "'batch'"), ({"task": "text-clasification"}, "text-classification"), ({"length": 64}, "32 positions"),
    ({"rows": 10, "data": "cityline"}, "one of them"), ({"labels": 3, "data": "cityline"}, "one of them"),
    ({"length": 0}, "length"), ({"task": {"a": "regression"}}, "one task"),
    ({"length": 8, "max_length": 8}, "one of them"), ({"image_size": 32}, "leave it out"), ({"labels": -3}, "labels"),
    ({"rows": True}, "rows"),
])
def test_mistakes_are_named(place: Path, more: dict[str, Any], says: str) -> None:
    with pytest.raises(NoSuchSetting, match=says):
        plan(place, "lora", **more)


def test_unknown_methods_and_models_are_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoSuchSetting, match="'lora'"):
        plan(place, ["full", "lroa"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("nobody/no-model", str(place / "nowhere")):
        with pytest.raises(ThriftyError, match="no-model|nowhere"):
            thrifty.plan(name, "lora", machine=MACHINE)
    with pytest.raises(ThriftyError, match="patches"):
        plan(place, "vpt")  # alone it is an error


def test_the_command_prints_a_table_or_json(place: Path, capsys: pytest.CaptureFixture[str],
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thrifty.planning.machine.recall", lambda device: MACHINE)
    words = ["plan", "--model", str(place / "bert"), "--method", "lora, ia3", "--batch", "8", "--length", "16", "--rows", "50",
             "--precision", "float32", "--memory", "1GiB", "--time", "1h", "--quiet"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "lora" in out and "ia3" in out and "yes" in out
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {each["method"] for each in said["forecasts"]} == {"lora", "ia3"} and said["budget"] == {"memory": 2**30, "time": 3600}
    assert main([*words[:-5], "--memory", "1Gib/s"]) == 2
    assert "memory" in capsys.readouterr().err


# -- a budget for one run -------------------------------------------------------------------------------------------------------
QUICK: dict[str, Any] = {"epochs": 1, "batch": 16, "rate": 1e-2, "progress": False, "baselines": False, "precision": "float32",
                         "device": "cpu"}


def tune(place: Path, out: Path, **more: Any) -> Any:
    return thrifty.tune(str(place / "bert"), str(place / "table"), "lora", out, **{**QUICK, **more})


def test_what_cannot_fit_is_refused_before_anything_runs(place: Path, tmp_path: Path) -> None:
    with pytest.raises(OverBudget, match=r"lora would take .* of tensors"):
        tune(place, tmp_path / "run", budget={"memory": "50kB"})
    assert not (tmp_path / "run").exists()
    peak = plan(place, "lora", data=str(place / "table"), batch=16).forecasts[0].memory.peak
    with pytest.raises(OverBudget, match=r"--batch \d+, --accumulate \d+"):
        tune(place, tmp_path / "run", budget={"memory": int(peak * 0.9)})
    assert not (tmp_path / "run").exists()


def test_a_run_that_fits_is_the_run_without_a_budget(place: Path, tmp_path: Path) -> None:
    plain, kept = tune(place, tmp_path / "plain"), tune(place, tmp_path / "kept", budget={"memory": "1GiB"})
    assert small_jobs.numbers(kept.folder) == small_jobs.numbers(plain.folder)
    assert (tmp_path / "kept" / "config.json").read_text() == (tmp_path / "plain" / "config.json").read_text()


def test_a_training_that_takes_more_is_stopped_and_its_checkpoint_is_complete(place: Path, tmp_path: Path,
                                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    real, held = Training._step, []

    def wasteful(self: Training) -> None:
        if self.log.step == 1:
            held.append(torch.ones(30_000_000) * 2)
        real(self)

    monkeypatch.setattr(Training, "_step", wasteful)
    with pytest.raises(OverBudget, match=r"after step 2 .* a step held .* the budget is 100.MB.*--resume"):
        tune(place, tmp_path / "run", budget={"memory": "100MB"})
    monkeypatch.setattr(Training, "_step", real)
    assert (tmp_path / "run" / "seed-0" / "checkpoint" / "state.json").is_file()
    done = tune(place, tmp_path / "run", resume=True, budget={"memory": "1GiB"})
    assert small_jobs.numbers(done.folder) == small_jobs.numbers(tune(place, tmp_path / "plain").folder)


def test_time_that_runs_out_stops_a_training(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thrifty.planning.machine.recall", lambda device: Machine(MACHINE.about, 0.0, {
        kind: [(1.0, 1e30)] for kind in RATES}))
    with pytest.raises(OverBudget, match=r"after step 1 .* have passed"):
        tune(place, tmp_path / "run", budget={"time": 1e-3})


@pytest.mark.parametrize("weights", ["full", "nf4"])
def test_the_measure_of_a_step_is_the_prediction(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 weights: str) -> None:
    if weights == "nf4":
        pytest.importorskip("bitsandbytes", reason='weights in four bits need bitsandbytes: pip install "thrifty[quantised]"')
    guards: list[Any] = []
    real = Guard.exceeded
    monkeypatch.setattr(Guard, "exceeded", lambda self: guards.append(self) or real(self))
    tune(place, tmp_path / "run", budget={"memory": "1GiB"}, weights=weights)
    memory = plan(place, "lora", data=str(place / "table"), batch=16, epochs=1.0, weights=weights).forecasts[0].memory
    assert guards[-1].most == pytest.approx(memory.step, rel=0.1)


def test_a_budget_has_no_meaning_for_several_datasets(place: Path, tmp_path: Path) -> None:
    both = {"one": str(place / "table"), "two": str(place / "table")}
    with pytest.raises((NoSuchSetting, BadData), match="budget|rows"):
        thrifty.tune(str(place / "bert"), both, "lora", tmp_path / "run", budget={"memory": "1GiB"}, allow_leak=True, **QUICK)



"""Two processes on gloo compute what one does, and only one of them writes."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import small_jobs
import torch
from safetensors.torch import load_file

import thrifty
from thrifty.core.errors import NoSuchSetting
from thrifty.models import load
from thrifty.train.processes import here

LAUNCH = (sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1", "--mixed_precision",
          "no", "--dynamo_backend", "no", "--main_process_port", "0")
KINDS = {"ddp": ("--multi_gpu",), "fsdp2": ("--use_fsdp", "--fsdp_version", "2")}


def launch(kind: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LAUNCH, *KINDS[kind], "-m", "thrifty", *map(str, words)], env=small_jobs.environment(),
                          capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    small_jobs.bert(folder / "bert", dropout=0.0)
    small_jobs.table(folder / "table", train=89)  # the last step of an epoch deals out an odd number of rows
    return folder


def words(place: Path, out: str, batch: int, *more: object) -> tuple[object, ...]:
    return ("tune", "--model", place / "bert", "--data", place / "table", "--out", place / out, "--epochs", 2, "--rate", "1e-2",
            "--patience", 0, "--batch", batch, *more)


@pytest.fixture(scope="module")
def one(place: Path) -> Path:
    done = small_jobs.run(*words(place, "one", 16))
    assert done.returncode == 0, done.stderr
    return place / "one"


@pytest.mark.parametrize("kind", list(KINDS))
def test_two_processes_with_half_the_batch_are_one_with_the_whole(place: Path, one: Path, kind: str) -> None:
    done = launch(kind, *words(place, kind, 8))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("trainable parameters") == 1  # one of them speaks
    mine, theirs = load_file(place / kind / "adapter" / "adapter.safetensors"), load_file(one / "adapter" / "adapter.safetensors")
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-3, atol=1e-5)
    runs = [small_jobs.numbers(folder) for folder in (place / kind, one)]
    curves = [[step["loss"] for step in run["seeds"][0]["history"]] for run in runs]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert runs[0]["test"]["accuracy"] == runs[1]["test"]["accuracy"] and runs[0]["parameters"] == runs[1]["parameters"]
    about = json.loads((place / kind / "environment.json").read_text())
    assert about["processes"] == {"count": 2, "kind": kind}
    thrifty.load(load(str(place / "bert"), "text-classification", runs[0]["labels"]).model, place / kind / "adapter")


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_weight_may_train_and_training_resumes(place: Path, kind: str) -> None:
    """Full fine-tuning leaves parameters without a gradient (wildcards), and its state is spread over processes too."""
    more = ("--method", "full", "--rate", "1e-3", "--accumulate", 2)
    whole = launch(kind, *words(place, f"full-{kind}", 4, *more))
    assert whole.returncode == 0, whole.stderr[-3000:]
    broken = subprocess.run([*LAUNCH, *KINDS[kind], str(Path(__file__).with_name("broken_run.py")),
                             *map(str, words(place, f"broken-{kind}", 4, *more, "--checkpoint-every", 2))],
                            env=small_jobs.environment(), capture_output=True, text=True, timeout=300)
    assert broken.returncode != 0 and "enough" in broken.stderr
    assert not (place / f"broken-{kind}" / "metrics.json").exists()
    again = launch(kind, *words(place, f"broken-{kind}", 4, *more, "--checkpoint-every", 2, "--resume"))
    assert again.returncode == 0, again.stderr[-3000:]
    files = [(place / f"{name}-{kind}" / "adapter" / "adapter.safetensors").read_bytes() for name in ("full", "broken")]
    assert files[0] == files[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_ranks_that_are_found_in_training(place: Path, kind: str) -> None:
    """Each seed finds ranks of its own, so that its adapter has shapes of its own; sharded weights keep theirs, with zeros."""
    more = ("--method", "adalora", "--set", "target=2", "--seeds", 2)
    done = launch(kind, *words(place, f"ranks-{kind}", 8, *more))
    alone = small_jobs.run(*words(place, f"ranks-{kind}-1", 16, *more))
    assert done.returncode == 0, done.stderr[-3000:]
    assert alone.returncode == 0, alone.stderr[-3000:]
    for seed in (0, 1):
        found = []
        for folder in (place / f"ranks-{kind}", place / f"ranks-{kind}-1"):
            held = load_file(folder / f"seed-{seed}" / "adapter" / "adapter.safetensors")
            ranks = {n.split("#")[0]: len(t) for n, t in held.items() if n.endswith("#low-rank:A")}
            ranks |= {n.split("#")[0]: int((t != 0).sum()) for n, t in held.items() if n.endswith("#components:c")}
            found.append({path: rank for path, rank in ranks.items() if rank})
        assert found[0] == found[1] and sum(found[0].values()) <= 2 * 12
    runs = [small_jobs.numbers(place / name) for name in (f"ranks-{kind}", f"ranks-{kind}-1")]
    assert runs[0]["test"]["accuracy"] == runs[1]["test"]["accuracy"]


def test_a_mistake_is_told_once_each_and_nobody_hangs(place: Path, one: Path) -> None:
    done = launch("ddp", *words(place, "one", 8))  # a finished run lies there
    assert done.returncode != 0 and "holds a finished run" in done.stderr
    assert (one / "metrics.json").exists()


def test_launchers_that_would_be_misunderstood_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(NoSuchSetting, match="the launcher gives each its own"):
        here("cuda:1")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(NoSuchSetting, match="--fsdp_version 2"):
        here()
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(NoSuchSetting, match="fp16"):
        here()

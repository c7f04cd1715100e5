"""Training goes on after `kill -9` and Ctrl-C with the same bits, and refuses to go on with anything else."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import small_jobs

import thrifty
from thrifty.core.errors import BrokenArtifact, ThriftyError

WORDS = ("--method", "lora", "--set", "dropout=0.1", "--epochs", 5, "--batch", 8, "--rate", "1e-2", "--patience", 0,
         "--checkpoint-every", 2)
FILES = ("adapter/adapter.safetensors", "adapter/adapter.json", "predictions.jsonl", "config.json", "data.json")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    small_jobs.bert(folder / "bert")
    small_jobs.table(folder / "table")
    return folder


def words(place: Path, out: str, *more: object) -> tuple[object, ...]:
    return ("tune", "--model", place / "bert", "--data", place / "table", "--out", place / out, *WORDS, *more)


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """A run that nothing interrupts."""
    done = small_jobs.run(*words(place, "whole"))
    assert done.returncode == 0, done.stderr
    return place / "whole"


def stop_at(place: Path, out: str, step: int, how: signal.Signals) -> subprocess.CompletedProcess[str]:
    """Send a signal once the checkpoint of at least ``step`` is there."""
    process = subprocess.Popen(small_jobs.command(*words(place, out)), env=small_jobs.environment(), text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    state = place / out / "seed-0" / "checkpoint" / "state.json"
    until = time.monotonic() + 240
    while time.monotonic() < until and process.poll() is None:
        if state.is_file() and json.loads(state.read_text())["log"]["step"] >= step:
            process.send_signal(how)
            break
        time.sleep(0.005)
    said = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, *said)


def assert_same(one: Path, other: Path) -> None:
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert small_jobs.numbers(one) == small_jobs.numbers(other)


@pytest.mark.parametrize("step", [2, 27])
def test_a_killed_training_goes_on_bit_for_bit(place: Path, whole: Path, step: int) -> None:
    out = f"killed-{step}"
    killed = stop_at(place, out, step, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    assert not (place / out / "metrics.json").exists()
    again = small_jobs.run(*words(place, out, "--resume"))
    assert again.returncode == 0, again.stderr
    assert_same(place / out, whole)


def test_control_c_leaves_a_checkpoint_and_says_so(place: Path, whole: Path) -> None:
    stopped = stop_at(place, "stopped", 14, signal.SIGINT)
    assert stopped.returncode == 130, stopped.stderr
    assert "--resume" in stopped.stderr and "Traceback" not in stopped.stderr
    assert str(place / "stopped" / "seed-0" / "checkpoint") in stopped.stderr
    again = small_jobs.run(*words(place, "stopped", "--resume"))
    assert again.returncode == 0, again.stderr
    assert_same(place / "stopped", whole)
    assert not (place / "stopped" / "seed-0").exists()  # a finished run keeps no checkpoints


@pytest.fixture
def half(place: Path, tmp_path: Path) -> dict[str, object]:
    """A training stopped in this process, after its checkpoint at step 6, and the arguments it began with."""
    given: dict[str, object] = {"model": str(place / "bert"), "data": str(place / "table"), "out": tmp_path / "run", "epochs": 2,
                                "batch": 8, "checkpoint_every": 2, "progress": False}

    class Enough(Exception):
        pass

    import thrifty.train.training as training

    def step(self: training.Training) -> None:
        if self.log.step == 7:
            raise Enough
        real(self)

    real, training.Training._step = training.Training._step, step  # type: ignore[method-assign]
    try:
        with pytest.raises(Enough):
            thrifty.tune(**given)  # type: ignore[arg-type]
    finally:
        training.Training._step = real  # type: ignore[method-assign]
    return given


@pytest.mark.parametrize(("change", "named"), [
    ({"epochs": 3}, "epochs was 2.0 and is 3.0"), ({"batch": 4}, "batch was 8 and is 4"), ({"rate": 1.0}, "rate was"),
    ({"method": thrifty.LoRA(rank=2)}, "method.rank was 8 and is 2"), ({"seed": 1}, "seed was 0 and is 1"),
])
def test_other_settings_are_refused_by_name(half: dict[str, object], change: dict[str, object], named: str) -> None:
    with pytest.raises(ThriftyError, match=named):
        thrifty.tune(**{**half, **change}, resume=True)  # type: ignore[arg-type]


def test_other_data_is_refused(place: Path, half: dict[str, object], tmp_path: Path) -> None:
    other = small_jobs.table(tmp_path / "table")
    (other / "train.csv").write_text((other / "train.csv").read_text() + "the lamp is old,light\n")
    with pytest.raises(ThriftyError, match="data"):
        thrifty.tune(**{**half, "data": str(other)}, resume=True)  # type: ignore[arg-type]


def test_data_changed_in_place_is_refused(half: dict[str, object], tmp_path: Path, place: Path) -> None:
    train = place / "table" / "train.csv"
    before = train.read_text()
    try:
        train.write_text(before + "the lamp is old,light\n")
        with pytest.raises(ThriftyError, match="data.train was"):
            thrifty.tune(**half, resume=True)  # type: ignore[arg-type]
    finally:
        train.write_text(before)


def test_another_base_in_the_same_place_is_refused(half: dict[str, object], place: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = place / "bert" / "model.safetensors"
    before = file.read_bytes()
    tensors = load_file(file)
    tensors["encoder.layer.0.attention.self.query.weight"][0, 0] += 1
    try:
        save_file(tensors, file, {"format": "pt"})
        with pytest.raises(ThriftyError, match="base model was"):
            thrifty.tune(**half, resume=True)  # type: ignore[arg-type]
    finally:
        file.write_bytes(before)


def test_a_damaged_checkpoint_is_refused(half: dict[str, object]) -> None:
    folder = Path(str(half["out"])) / "seed-0" / "checkpoint"
    tensors = next(folder.glob("tensors-*.safetensors"))
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    with pytest.raises(BrokenArtifact, match="hash"):
        thrifty.tune(**half, resume=True)  # type: ignore[arg-type]
    tensors.unlink()
    with pytest.raises(BrokenArtifact, match="lacks"):
        thrifty.tune(**half, resume=True)  # type: ignore[arg-type]


def test_checkpoints_hold_no_code(half: dict[str, object]) -> None:
    names = {path.suffix for path in (Path(str(half["out"])) / "seed-0" / "checkpoint").iterdir()}
    assert names <= {".safetensors", ".json"}


def test_an_unfinished_run_is_not_overwritten_by_accident(half: dict[str, object]) -> None:
    with pytest.raises(ThriftyError, match="did not finish.*--resume"):
        thrifty.tune(**half)  # type: ignore[arg-type]
    assert thrifty.tune(**half, overwrite=True).metrics["test"]  # type: ignore[arg-type]


def test_resuming_a_finished_run_returns_it(half: dict[str, object]) -> None:
    first = thrifty.tune(**half, resume=True)  # type: ignore[arg-type]
    at = os.stat(first.folder / "metrics.json").st_mtime_ns
    again = thrifty.tune(**half, resume=True)  # type: ignore[arg-type]
    assert again.metrics == first.metrics and os.stat(first.folder / "metrics.json").st_mtime_ns == at
    with pytest.raises(ThriftyError, match="finished run"):
        thrifty.tune(**half)  # type: ignore[arg-type]

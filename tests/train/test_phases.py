"""Methods that change in the middle of a training: what trains, the search for the best state, rates, and losses of their own."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import small_jobs
import torch
from safetensors.torch import load_file
from torch import Tensor

import thrifty
from thrifty.core import Attachment
from thrifty.core.errors import ThriftyError
from thrifty.methods import LoRA
from thrifty.train import training

QUICK: dict[str, Any] = {"epochs": 4, "batch": 16, "rate": 1e-2, "progress": False, "baselines": False, "patience": 0,
                         "checkpoint_every": 2}


@dataclass
class Half(LoRA):
    """Half of its edits are taken away in the middle; the magnitude of the others' B is pulled to zero batch by batch."""

    name = "half-lora"
    rank: int = 2
    pull: float = 0.0

    elsewhere = (*LoRA.elsewhere, "pull")

    def groups(self, at: Attachment, rate: float, decay: float) -> list[dict[str, Any]]:
        first, *rest = super().groups(at, rate, decay)
        return [{**first, "constant": True}, *rest]

    def loss(self, at: Attachment, task: Any, model: Any, batch: Any) -> tuple[Tensor, int]:
        mean, count = super().loss(at, task, model, batch)
        return mean + self.pull * sum(edit.B.square().sum() for edit in at.edits.values()), count

    def step(self, at: Attachment, step: int, total: int) -> None:
        if step >= total / 2 and len(at.edits) == 4:
            for key in list(at.edits)[2:]:
                at.take_away(key)

    def resume(self, at: Attachment, state: Mapping[str, Tensor]) -> None:
        held = {name.split(":")[1] for name in state if name.startswith("edit:")}
        for key in [key for key in at.edits if key not in held]:
            at.take_away(key)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phases")
    small_jobs.bert(folder / "bert", dropout=0.0)
    small_jobs.table(folder / "table")
    return folder


def tune(place: Path, out: Path, **more: Any) -> thrifty.train.Run:  # type: ignore[name-defined]
    method = more.pop("method", None) or Half()
    return thrifty.tune(str(place / "bert"), str(place / "table"), method, out=out, **{**QUICK, **more})


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    tune(place, place / "whole")
    return place / "whole"


def test_only_states_of_the_last_phase_count(whole: Path) -> None:
    (seed,) = thrifty.train.Run.read(whole).metrics["seeds"]  # type: ignore[attr-defined]
    steps = seed["history"][-1]["step"]
    assert seed["best_step"] >= steps / 2
    held = load_file(whole / "adapter" / "adapter.safetensors")
    assert len({n.split(":")[1] for n in held if n.startswith("edit:")}) == 2


def test_a_group_may_keep_its_rate(whole: Path) -> None:
    (seed,) = thrifty.train.Run.read(whole).metrics["seeds"]  # type: ignore[attr-defined]
    assert {step["rate"] for step in seed["history"]} == {1e-2}


def test_a_training_goes_on_from_its_second_phase(place: Path, whole: Path, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    real = training.Training._step

    def stops(self: training.Training) -> None:
        if self.log.step == 17:
            raise ThriftyError("stop")
        real(self)

    with monkeypatch.context() as patched:
        patched.setattr(training.Training, "_step", stops)
        with pytest.raises(ThriftyError, match="stop"):
            tune(place, tmp_path / "run")
    tune(place, tmp_path / "run", resume=True)
    one, other = (load_file(folder / "adapter" / "adapter.safetensors") for folder in (whole, tmp_path / "run"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_loss_of_the_methods_own_is_part_of_every_batch(place: Path, whole: Path, tmp_path: Path) -> None:
    pulled = tune(place, tmp_path / "run", method=Half(pull=10.0))
    one, other = (load_file(folder / "adapter" / "adapter.safetensors") for folder in (whole, pulled.folder))
    sizes = [sum(float(t.square().sum()) for n, t in held.items() if n.endswith(":B")) for held in (one, other)]
    assert sizes[1] < 0.2 * sizes[0]

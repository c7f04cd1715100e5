"""Methods that remember: what they keep between steps is resumed, and what they were before they settled is not kept."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import small_jobs
import torch

import thrifty
from thrifty.train import Run, training

QUICK: dict[str, Any] = {"epochs": 2, "batch": 8, "rate": 1e-2, "progress": False, "baselines": False, "checkpoint_every": 2}
TOTAL = 24


@dataclass
class Drawn(thrifty.LoRA):
    """LoRA whose B are drawn towards their own running mean; it settles in the second half."""

    @torch.no_grad()
    def step(self, at: thrifty.Attachment, step: int, total: int) -> None:
        assert total == TOTAL
        for name, p in at.named_parameters():
            if name.endswith(":B"):
                assert p.grad is not None
                at.memory[name] = at.memory.get(name, torch.zeros_like(p)).lerp(p, 0.5)
                p.lerp_(at.memory[name], 0.5)
        at.memory["settled"] = torch.tensor(step > total // 2)

    def settled(self, at: thrifty.Attachment) -> bool:
        return bool(at.memory["settled"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schedules")
    small_jobs.bert(folder / "bert")
    small_jobs.table(folder / "table")
    return folder


def tune(place: Path, out: Path, **more: Any) -> Run:
    return thrifty.tune(str(place / "bert"), str(place / "table"), Drawn(dropout=0.1), out, **{**QUICK, **more})


def test_memory_is_resumed_and_not_saved_with_the_adapter(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Enough(Exception):
        pass

    def step(self: training.Training) -> None:
        if self.log.step == 7:
            raise Enough
        real(self)

    whole, real = tune(place, tmp_path / "whole"), training.Training._step
    monkeypatch.setattr(training.Training, "_step", step)
    with pytest.raises(Enough):
        tune(place, tmp_path / "run")
    monkeypatch.setattr(training.Training, "_step", real)
    again = tune(place, tmp_path / "run", resume=True)
    files = [(run.adapter / "adapter.safetensors").read_bytes() for run in (whole, again)]
    assert files[0] == files[1] and b"settled" not in files[0]
    assert small_jobs.numbers(whole.folder) == small_jobs.numbers(again.folder)


def test_nothing_is_kept_or_ends_the_training_before_the_method_has_settled(place: Path, tmp_path: Path,
                                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    from thrifty.tasks.text_classification import TextClassification

    falling = iter(range(100, 0, -1))  # every evaluation is worse than the one before
    monkeypatch.setattr(TextClassification, "metrics", lambda *_: {"accuracy": next(falling) / 100})
    seed = tune(place, tmp_path / "run", evaluations=3, patience=1).metrics["seeds"][0]
    assert [e["step"] for e in seed["evaluations"]] == [4, 8, 12, 16, 20]
    assert seed["best_step"] == 16 and seed["stopped"] == "early"

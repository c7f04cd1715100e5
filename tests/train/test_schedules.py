"""Methods that remember: what they keep between steps is resumed, and what they were before they settled is not kept."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import small_jobs
import torch

import thrifty
from thrifty import artifact
from thrifty.train import Run, training

QUICK: dict[str, Any] = {"epochs": 2, "batch": 8, "rate": 1e-2, "progress": False, "baselines": False, "checkpoint_every": 2}
TOTAL = 24


METHODS: dict[str, thrifty.Method] = {
    "adalora": thrifty.AdaLoRA(rank=3, target=2, every=2, dropout=0.1),
    "dynamic-rank-dora": thrifty.DynamicRankDoRA(rank=2, every=2)}


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
    small_jobs.bert(folder / "still", dropout=0.0)
    small_jobs.table(folder / "table")
    return folder


def tune(place: Path, out: Path, method: thrifty.Method, model: str = "bert", **more: Any) -> Run:
    return thrifty.tune(str(place / model), str(place / "table"), method, out, **{**QUICK, **more})


@pytest.mark.parametrize("method", [Drawn(dropout=0.1), *METHODS.values()], ids=["drawn", *METHODS])
def test_memory_is_resumed_and_not_saved_with_the_adapter(place: Path, tmp_path: Path, method: thrifty.Method,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    class Enough(Exception):
        pass

    def step(self: training.Training) -> None:
        if self.log.step == 9:
            raise Enough
        real(self)

    whole, real = tune(place, tmp_path / "whole", method), training.Training._step
    monkeypatch.setattr(training.Training, "_step", step)
    with pytest.raises(Enough):
        tune(place, tmp_path / "run", method)
    monkeypatch.setattr(training.Training, "_step", real)
    again = tune(place, tmp_path / "run", method, resume=True)
    files = [(run.adapter / "adapter.safetensors").read_bytes() for run in (whole, again)]
    assert files[0] == files[1] and b"settled" not in files[0]
    assert small_jobs.numbers(whole.folder) == small_jobs.numbers(again.folder)


@pytest.mark.parametrize("name", METHODS)
def test_the_adapter_of_a_run_has_the_ranks_of_its_budget(place: Path, tmp_path: Path, name: str) -> None:
    """However the rows are cut into batches; and the run's predictions are those of what is on disk."""
    plans = []
    for batch, accumulate in ((16, 1), (8, 2)):
        method = METHODS[name].make(**{**METHODS[name].settings(), "dropout": 0.0})
        run = tune(place, tmp_path / str(batch), method, "still", batch=batch, accumulate=accumulate, evaluations=3)
        plan = artifact.inspect(run.adapter)["plan"]
        assert {row["edit"] for row in plan} == {"low-rank"} and sum(row["numbers"]["rank"] for row in plan) <= 2 * 12
        plans.append({row["path"]: row["numbers"]["rank"] for row in plan})
        seed = run.metrics["seeds"][0]
        assert seed["best_step"] > 0.45 * seed["history"][-1]["step"]
    assert plans[0] == plans[1] and len(set(plans[0].values())) > 1


def test_nothing_is_kept_or_ends_the_training_before_the_method_has_settled(place: Path, tmp_path: Path,
                                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    from thrifty.tasks.text_classification import TextClassification

    falling = iter(range(100, 0, -1))  # every evaluation is worse than the one before
    monkeypatch.setattr(TextClassification, "metrics", lambda *_: {"accuracy": next(falling) / 100})
    seed = tune(place, tmp_path / "run", Drawn(), evaluations=3, patience=1).metrics["seeds"][0]
    assert [e["step"] for e in seed["evaluations"]] == [4, 8, 12, 16, 20]
    assert seed["best_step"] == 16 and seed["stopped"] == "early"

"""The loop itself: however rows are cut into batches the steps are the same, and what goes wrong is named."""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import small_jobs
import torch
from safetensors.torch import load_file

import thrifty
from thrifty.core.errors import FrozenMoved, NoSuchSetting, NothingTrains, ThriftyError
from thrifty.models import load
from thrifty.tasks import Task
from thrifty.train import Run, training
from thrifty.train.rates import give_head

QUICK: dict[str, Any] = {"epochs": 2, "batch": 16, "rate": 1e-2, "progress": False, "baselines": False, "patience": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    small_jobs.bert(folder / "bert", dropout=0.0)
    small_jobs.table(folder / "table", train=90)  # the last batch of an epoch is smaller
    return folder


def tune(place: Path, out: Path, **more: Any) -> Run:
    return thrifty.tune(str(place / "bert"), str(place / "table"), out=out, **{**QUICK, **more})


def tensors(run: Run) -> dict[str, torch.Tensor]:
    return dict(load_file(run.adapter / "adapter.safetensors"))


def losses(run: Run) -> list[float]:
    return [step["loss"] for step in run.metrics["seeds"][0]["history"]]


@pytest.fixture(scope="module")
def plain(place: Path) -> Run:
    return tune(place, place / "plain")


@pytest.mark.parametrize("more", [{"batch": 4, "accumulate": 4}, {"batch": 8, "accumulate": 2}, {"checkpointing": True}])
def test_the_same_steps_by_other_means(place: Path, tmp_path: Path, plain: Run, more: dict[str, Any]) -> None:
    other = tune(place, tmp_path / "run", **more)
    assert losses(other) == pytest.approx(losses(plain), rel=1e-4)
    for name, value in tensors(plain).items():
        torch.testing.assert_close(tensors(other)[name], value, rtol=1e-3, atol=1e-5)


def test_a_rate_of_its_own_for_the_head(place: Path, tmp_path: Path) -> None:
    """AdamW's first step moves every number by about the rate, whatever its gradient."""
    run = tune(place, tmp_path / "run", epochs=1, batch=90, warmup=0.0, rate=1e-3, head_rate=1e-1)
    start = load(str(place / "bert"), "text-classification", run.metrics["labels"], seed=0).model.state_dict()
    found = tensors(run)
    moved = {name: found[f"base:{name}"] - start[name] for name in start if name.startswith("classifier")}
    assert moved and all(float(m.abs().median()) == pytest.approx(1e-1, rel=1e-2) for m in moved.values())
    risen = [t for name, t in found.items() if name.startswith("edit:") and name.rpartition(":")[2].startswith("B")]
    assert risen and all(float(t.abs().max()) <= 1.01e-3 for t in risen)


def test_no_rate_for_a_head_that_is_not_there() -> None:
    with pytest.raises(NoSuchSetting, match="head_rate: no head trains"):
        give_head([{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 1.0}], [], 0.1)


def test_one_step_is_adamw_on_the_mean_loss(place: Path, tmp_path: Path) -> None:
    """The first step, written out with plain torch: rows in the recorded order, clipping, AdamW at the warmed-up rate."""
    run = tune(place, tmp_path / "run", epochs=1, batch=90, clip=0.05, warmup=0.0)
    backbone = load(str(place / "bert"), "text-classification", run.metrics["labels"], seed=0)
    head = [name for name, _ in backbone.model.named_parameters() if name.startswith("classifier")]
    at = thrifty.attach(backbone.model, thrifty.LoRA(), also_train="|".join(head), seed=0)
    rows = [line.rsplit(",", 1) for line in (place / "table" / "train.csv").read_text().splitlines()[1:]]
    batch = backbone.preprocess([text for text, _ in rows], padding=True, return_tensors="pt")
    target = torch.tensor([run.metrics["labels"].index(label) for _, label in rows])
    loss = torch.nn.functional.cross_entropy(backbone.model(**batch)["logits"], target)
    loss.backward()
    assert losses(run) == pytest.approx([float(loss)], rel=1e-5)
    norm = torch.sqrt(sum((p.grad**2).sum() for p in at.parameters()))
    assert norm > 0.05
    for name, p in at.named_parameters():
        g = p.grad * 0.05 / (norm + 1e-6)
        stepped = p.detach() - 1e-2 * g / (g.abs() + 1e-8)  # the first step of Adam: both moments corrected to g and g²
        torch.testing.assert_close(tensors(run)[name], stepped, rtol=1e-3, atol=2e-5)


def test_a_loss_that_is_not_finite_names_step_and_rows(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = training.Training._gradients

    def poisoned(self: training.Training, rows: list[int]) -> float:
        if self.log.step == 3:
            with torch.no_grad():
                next(iter(self.at.parameters())).fill_(float("nan"))
            named.extend(rows)
        return real(self, rows)

    named: list[int] = []
    monkeypatch.setattr(training.Training, "_gradients", poisoned)
    with pytest.raises(ThriftyError, match="the loss is nan at step 4, on rows") as caught:
        tune(place, tmp_path / "run")
    assert str(caught.value).split("rows ")[1].split(" of the train")[0] == ", ".join(map(str, sorted(named)))


def test_a_frozen_tensor_that_moves_is_an_error(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = training.Training._step

    def careless(self: training.Training) -> None:
        real(self)
        with torch.no_grad():
            self.at.model.get_parameter("bert.encoder.layer.0.attention.self.query.weight").add_(1e-3)

    monkeypatch.setattr(training.Training, "_step", careless)
    with pytest.raises(FrozenMoved, match="query.weight"):
        tune(place, tmp_path / "run")


class Deaf(torch.nn.Module):
    """A module whose second branch never reaches the loss."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.spare, self.config = inner, torch.nn.Linear(32, 3), inner.config

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        out = self.inner(input_ids=input_ids, attention_mask=attention_mask)
        self.spare(torch.zeros(1, 32))
        return out


def test_a_tensor_without_a_gradient_is_an_error_by_the_second_step(place: Path, tmp_path: Path) -> None:
    from thrifty.models import wrap

    backbone = load(str(place / "bert"), "text-classification", ["light", "road", "water"])
    deaf = wrap(Deaf(backbone.model), backbone.preprocess, new=["spare", "inner.classifier"])
    with pytest.raises(NothingTrains, match="spare"):
        thrifty.tune(deaf, str(place / "table"), out=tmp_path / "run", **QUICK)


@dataclass
class Pulled(thrifty.LoRA):
    """LoRA whose penalty and step are watched."""

    def penalty(self, at: thrifty.Attachment) -> torch.Tensor:
        return 1e4 * sum((p**2).sum() for n, p in at.named_parameters() if n.endswith(":A"))

    def step(self, at: thrifty.Attachment, step: int, total: int) -> None:
        seen.append((step, total))


seen: list[tuple[int, int]] = []


def test_methods_add_a_penalty_and_see_every_step(place: Path, tmp_path: Path, plain: Run) -> None:
    seen.clear()
    pulled = tune(place, tmp_path / "run", method=Pulled(), accumulate=2, batch=8)
    steps = len(losses(pulled))
    assert seen == [(i + 1, steps) for i in range(steps)]
    free, drawn = (sum(float(t.abs().sum()) for n, t in tensors(run).items() if n.endswith(":A")) for run in (plain, pulled))
    assert drawn < 0.9 * free


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights(place: Path, tmp_path: Path, plain: Run) -> None:
    run = tune(place, tmp_path / "run", precision="bfloat16")
    assert {t.dtype for t in tensors(run).values()} == {torch.float32}
    assert losses(run) == pytest.approx(losses(plain), rel=0.05) and losses(run) != losses(plain)
    about = json.loads((run.folder / "environment.json").read_text())["precision"]
    assert about["name"] == "bfloat16" and about["why"]


def test_checkpointing_that_a_model_does_not_offer_is_refused(place: Path, tmp_path: Path) -> None:
    from thrifty.models import wrap

    backbone = load(str(place / "bert"), "text-classification", ["light", "road", "water"])
    bare = wrap(Deaf(backbone.model), backbone.preprocess, new=["inner.classifier"])
    with pytest.raises(NoSuchSetting, match="Deaf has no gradient_checkpointing_enable"):
        thrifty.tune(bare, str(place / "table"), out=tmp_path / "run", checkpointing=True, **QUICK)


def test_dropout_is_on_in_training_and_off_in_evaluation(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: dict[str, set[bool]] = {"loss": set(), "judge": set()}
    from thrifty.tasks.text_classification import TextClassification

    for name in modes:
        real = getattr(TextClassification, name)

        def watched(self: Task, model: torch.nn.Module, batch: Any, name: str = name, real: Any = real) -> Any:
            modes[name].add(model.training)
            return real(self, model, batch)

        monkeypatch.setattr(TextClassification, name, watched)
    tune(place, tmp_path / "run")
    assert modes == {"loss": {True}, "judge": {False}}

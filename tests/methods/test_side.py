"""Side networks in the main job: data for the start of a ladder, training, saving, and the trunk left as it was."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import run, shake, tiny

import thrifty
from thrifty.core.errors import DeadEdit
from thrifty.testing import tiny as backbones

sys.path.append(str(Path(__file__).parents[1] / "train"))
import small_jobs  # noqa: E402

QUICK: dict[str, Any] = {"epochs": 6, "batch": 8, "progress": False, "baselines": False, "patience": 0, "evaluations": 1}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("side")
    small_jobs.bert(folder / "bert")
    small_jobs.table(folder / "table")
    return folder


@pytest.mark.parametrize("more", [
    {"method": {"name": "lst", "reduction": 2, "drop_every": 0}, "rate": 1e-2},
    {"method": {"name": "lst", "reduction": 2, "drop_every": 0}, "rate": 1e-2, "checkpointing": True},
    {"method": {"name": "res-tuning-bypass", "rank": 8}, "rate": 1e-2},
    {"method": {"name": "k-adapter", "width": 16, "heads": 2}, "rate": 3e-3}],
    ids=["lst", "lst-checkpointing", "bypass", "k-adapter"])
def test_the_main_job(place: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    done = thrifty.tune(str(place / "bert"), str(place / "table"), out=tmp_path / "run", **QUICK, **more)
    losses = [step["loss"] for step in done.metrics["seeds"][0]["history"]]
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])
    assert done.metrics["test"]["accuracy"]["value"] > 0.4  # of three classes


def test_taps_and_networks_are_switched_together() -> None:
    for method in (thrifty.ResTuningBypass(rank=2), thrifty.KAdapter(width=8, heads=2),
                   thrifty.LST(reduction=2, init="magnitude")):
        model = tiny("bert")
        at = thrifty.attach(model, method)
        at.disable(lambda row: row.edit == "side-tap")
        with pytest.raises(DeadEdit, match="switch all edits on or off together"):
            run(model)


def test_a_side_network_above_another_adapter_hears_it() -> None:
    """Adapters in the trunk act as ever; the side network reads what they made of it, outside their graph."""
    for method in (thrifty.ResTuningBypass(rank=2), thrifty.KAdapter(width=8, heads=2),
                   thrifty.LST(reduction=2, init="magnitude")):
        model = tiny("bert")
        lora = thrifty.attach(model, thrifty.LoRA(rank=2), "lora")
        at = thrifty.attach(model, method, "side")
        shake(at, 0.1)
        before = run(model)
        shake(lora, 0.5)
        assert not torch.allclose(run(model), before, atol=1e-4)
        run(model).sum().backward()
        assert all(p.grad is None for p in lora.parameters()) and all(p.grad is not None for p in at.parameters())


def test_backbones_that_are_not_from_transformers() -> None:
    made = backbones.make("encoder_norm_first")
    model = made.fresh()
    at = thrifty.attach(model, thrifty.ResTuningBypass(rank=2), example=made.example)
    shake(at)
    assert not torch.allclose(made.output(model), made.output(made.fresh()), atol=1e-3)

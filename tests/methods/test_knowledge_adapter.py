"""Knowledge adapters: what each of the two phases trains, and a run through both from a graph to a task."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import frozen_stay, published, tiny

import thrifty
from thrifty import artifact, models
from thrifty.core.errors import CannotCombine, NoSuchSetting, WrongBase
from thrifty.data.walks import Triple, corpus

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
import tiny_folders  # noqa: E402

QUICK: dict[str, Any] = {"batch": 8, "progress": False, "rate": 1e-2}


def graph() -> list[Triple]:
    names = [f"{a}{b}" for a in "abcdefgh" for b in "ijkl"]
    return [Triple(name, "IsA", names[(7 * i + k) % len(names)]) for i, name in enumerate(names) for k in (1, 3)]


def test_counts_and_what_each_phase_trains() -> None:
    first = thrifty.attach(published("bert-base"), thrifty.KnowledgeAdapter()).summary()
    assert (first.tuner, first.in_place) == (2_379_264, 38_400)
    second = thrifty.attach(published("bert-base"), thrifty.KnowledgeAdapter(tunes="all")).summary()
    assert (second.tuner, second.in_place) == (2_379_264, 109_482_240)
    model = tiny("bert")
    moved = frozen_stay(model, thrifty.attach(model, thrifty.KnowledgeAdapter(rank=4)))
    assert all(".edits." in n or "LayerNorm" in n for n in moved)
    model = tiny("bert")
    moved = frozen_stay(model, thrifty.attach(model, thrifty.KnowledgeAdapter(rank=4, tunes="all")))
    assert {n for n, _ in model.named_parameters() if "word_embeddings" not in n} <= moved


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folders.masked_bert(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def knowing(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the first phase: hidden words of walks through a graph."""
    texts = corpus(graph(), length=9)["text"]
    data = {"train": {"text": texts[16:]}, "validation": {"text": texts[:8]}, "test": {"text": texts[8:16]}}
    out = tmp_path_factory.mktemp("runs") / "knowing"
    run = thrifty.tune(folder, data, thrifty.KnowledgeAdapter(rank=4), out, task="masked-language", epochs=6, **QUICK)
    (untrained,) = run.metrics["baselines"]
    assert untrained["difference"]["low"] > 0  # better on walks that were held out, beyond chance
    return out / "adapter"


def test_the_first_phase_moves_adapters_norms_and_head_alone(folder: str, knowing: Path) -> None:
    trained = artifact.inspect(knowing)["trained"]
    assert all("LayerNorm" in n or n.startswith("cls.") for n in trained)
    assert not any("word_embeddings" in n or n.endswith("decoder.weight") for n in trained)
    assert {n for n, _ in models.load(folder, "masked-language").model.named_parameters() if "LayerNorm" in n} <= set(trained)


def test_the_second_phase_starts_from_the_first(folder: str, knowing: Path, tmp_path: Path) -> None:
    rows = [{"text": f"{a}{b} {c}", "label": "yes" if (i + j) % 2 else "no"} for i, a in enumerate("abcdefgh")
            for j, b in enumerate("ijkl") for c in "mn"]
    data = {"train": rows[:40], "validation": rows[40:52], "test": rows[52:]}
    method = thrifty.KnowledgeAdapter(rank=4, tunes="all")
    run = thrifty.tune(folder, data, method, tmp_path / "task", epochs=1, start=str(knowing), baselines=False, **QUICK)
    assert run.metrics["parameters"]["tuner"] > 0 and any("left behind: cls." in said for said in run.metrics["warnings"])
    backbone = models.load(folder, "text-classification", ["no", "yes"])
    fresh = thrifty.attach(backbone.model, method, also_train="classifier*")
    left = artifact.begin(fresh, knowing)
    assert left and all(n.startswith("cls.") for n in left)
    saved = artifact.load(models.load(folder, "masked-language").model, knowing).state()
    state = fresh.state()
    assert all(torch.equal(state[n], t) for n, t in saved.items() if n.removeprefix("base:") not in left)
    assert sum(n.startswith("edit:") for n in saved) == 2 * 2 * 4


def test_starts_that_do_not_fit(folder: str, knowing: Path, tmp_path: Path) -> None:
    def fresh(method: Any) -> thrifty.Attachment:
        return thrifty.attach(models.load(folder, "text-classification", ["no", "yes"]).model, method)

    with pytest.raises(CannotCombine, match="other settings"):
        artifact.begin(fresh(thrifty.KnowledgeAdapter(rank=2)), knowing)
    with pytest.raises(CannotCombine, match="another method"):
        artifact.begin(fresh(thrifty.LoRA()), knowing)
    with pytest.raises(CannotCombine, match="frozen here"):
        artifact.begin(fresh(thrifty.Houlsby(rank=4, preset="adapterhub")), knowing)
    with pytest.raises(WrongBase, match="common tensors"):
        artifact.begin(_other(tmp_path), knowing)
    with pytest.raises(WrongBase, match="no tensor in common"):
        artifact.begin(thrifty.attach(tiny("llama"), thrifty.Houlsby(rank=4)), knowing)
    with pytest.raises(NoSuchSetting, match="tunes"):
        fresh(thrifty.KnowledgeAdapter(tunes="everything"))


def _other(folder: Path) -> thrifty.Attachment:
    """The same architecture with other weights."""
    torch.manual_seed(5)
    model = models.load(str(tiny_folders.bert(folder)), "text-classification", ["no", "yes"]).model
    torch.nn.init.normal_(model.bert.encoder.layer[0].attention.self.query.weight)
    return thrifty.attach(model, thrifty.KnowledgeAdapter(rank=4))

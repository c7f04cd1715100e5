"""Life cycle, point 8: a weighted combination of adapters is exact, or refused."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from artifact_models import MODELS, answer, bert, plain, shake
from torch import Tensor

import thrifty
from thrifty.core.errors import BrokenArtifact, CannotCombine, ThriftyError, WrongBase


def saved(folder: Path, method: Any, seed: int = 3, name: str = "bert", also: str | None = None) -> Path:
    at = thrifty.attach(MODELS[name](), method, also_train=also)
    shake(at.parameters(), seed)
    return at.save(folder)


def change(folder: Path, name: str) -> dict[str, Tensor]:
    """By how much an adapter moves each weight of the base, told by merging it."""
    model = MODELS[name]().double()
    before = {k: t.clone() for k, t in model.state_dict().items()}
    at = thrifty.load(model, folder, base="any")
    at.merge()
    return {k: t - before[k] for k, t in model.state_dict().items()}


SUMS: dict[str, tuple[str, list[Any], list[float], str | None]] = {
    "ranks": ("bert", [thrifty.LoRA(rank=2), thrifty.LoRA(rank=5, alpha=3.0)], [0.7, -0.4], None),
    "places": ("bert", [thrifty.LoRA(where="attn.q"), thrifty.LoRA(where="mlp.out|attn.q")], [1.0, 2.0], None),
    "rslora": ("llama", [thrifty.LoRA(rank=4, stable=True), thrifty.LoRA(rank=2)], [0.5, 0.5], None),
    "one, not at 1": ("gpt2", [thrifty.LoRA(rank=3, stable=True)], [0.25], None),
    "fused": ("gpt2", [thrifty.LoRA(), thrifty.LoRA(where="attn.k|attn.v")], [1.0, 1.0], None),
    "convolutions": ("cnn", [thrifty.LoRA(where="conv"), thrifty.LoRA(where="conv", rank=1)], [0.3, 0.7], None),
    "heads": ("bert", [thrifty.LoRA(), thrifty.LoRA()], [0.5, 0.25], "head"),
    "three": ("plain", [thrifty.LoRA(where="linear")] * 3, [1.0, -1.0, 0.5], "1"),
}


@pytest.mark.parametrize("case", SUMS)
def test_the_sum_is_exact(case: str, tmp_path: Path) -> None:
    name, methods, weights, also = SUMS[case]
    folders = [saved(tmp_path / str(i), method, i, name, also) for i, method in enumerate(methods)]
    model = MODELS[name]()
    before = answer(model, name)
    at = thrifty.combine(model, list(zip(folders, weights, strict=True)))
    assert not torch.equal(answer(model, name), before) and list(thrifty.attachments(model)) == ["combined"]
    at.save(tmp_path / "sum")
    parts, whole = [change(f, name) for f in folders], change(tmp_path / "sum", name)
    for key, moved in whole.items():
        wanted = sum((w * p[key] for w, p in zip(weights, parts, strict=True)), torch.zeros(()))
        assert (moved - wanted).abs().max() < 1e-6, key
    at.detach()
    assert torch.equal(answer(model, name), before)


@pytest.mark.parametrize("method", [thrifty.LoRA(), thrifty.LoRA(stable=True, rank=3), thrifty.DoRA(), thrifty.IA3(),
                                    thrifty.Houlsby(), thrifty.BitFit()], ids=lambda m: m.name)
def test_one_at_weight_one_is_itself(method: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", method, also="head")
    own, combined = bert(), bert()
    thrifty.load(own, folder)
    at = thrifty.combine(combined, [(folder, 1.0)])
    assert torch.equal(answer(combined, "bert"), answer(own, "bert"))
    assert at.name == "combined" and at.method == method


@pytest.mark.parametrize(("method", "said"), [(thrifty.DoRA(), "Decomposed"), (thrifty.IA3(), "Scale"),
                                              (thrifty.Pfeiffer(), "no exact sum|weighted sum")],
                         ids=["dora", "ia3", "pfeiffer"])
def test_what_has_no_sum(method: Any, said: str, tmp_path: Path) -> None:
    folders = [saved(tmp_path / str(i), method, i) for i in range(2)]
    model = bert()
    before = answer(model, "bert")
    for adapters in ([(folders[0], 0.5), (folders[1], 0.5)], [(folders[0], 0.5)]):
        with pytest.raises(CannotCombine, match=said):
            thrifty.combine(model, adapters)
        assert not thrifty.attachments(model) and torch.equal(answer(model, "bert"), before)


def test_an_edit_that_is_off_adds_nothing(tmp_path: Path) -> None:
    model = plain()
    at = thrifty.attach(model, thrifty.LoRA(where="linear"))
    shake(at.parameters())
    at.disable(lambda row: row.path == "3")
    at.save(tmp_path / "a")
    twice = plain()
    combined = thrifty.combine(twice, [(tmp_path / "a", 2.0)])
    assert [row.path for row in combined.plan] == ["0", "5"]


def test_running_statistics_have_no_sum(tmp_path: Path) -> None:
    at = thrifty.attach(plain(), thrifty.LoRA(where="linear"))
    at.train_buffers(["1.running_mean"])
    shake(at.parameters())
    at.save(tmp_path / "a")
    with pytest.raises(CannotCombine, match="'1.running_mean' is a running statistic"):
        thrifty.combine(plain(), [(tmp_path / "a", 0.5)])


def test_heads_that_started_apart(tmp_path: Path) -> None:
    """Each task drew its own head: what counts is how far each adapter moves the head that this model has."""
    folders = []
    for i in range(2):
        model = bert()
        with torch.no_grad():
            model.classifier.weight.add_(i)
        at = thrifty.attach(model, thrifty.LoRA(), also_train="head")
        shake(at.parameters())
        folders.append((at.save(tmp_path / str(i)), 0.5))
    model = bert()
    thrifty.combine(model, folders)
    with torch.no_grad():
        mean = sum(thrifty.load(bert(), f).state()["base:classifier.weight"] for f, _ in folders) / 2
    assert (model.classifier.weight - mean).abs().max() < 1e-6


def test_bad_requests(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", thrifty.LoRA())
    with pytest.raises(ThriftyError, match="at least one"):
        thrifty.combine(bert(), [])
    with pytest.raises(CannotCombine, match="is nan"):
        thrifty.combine(bert(), [(folder, float("nan")), (folder, 1.0)])
    with pytest.raises(BrokenArtifact, match="nowhere"):
        thrifty.combine(bert(), [(folder, 0.5), (tmp_path / "nowhere", 0.5)])
    with pytest.raises(WrongBase):
        thrifty.combine(bert(2), [(folder, 0.5), (folder, 0.5)])
    with pytest.raises(ThriftyError, match="letters, digits"):
        thrifty.combine(bert(), [(folder, 0.5)], name="../x")

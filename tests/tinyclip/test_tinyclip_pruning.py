"""Gates on whole towers, what they cost, and cutting: a pruned model answers as the gated one does, and loads again."""
from __future__ import annotations

import copy
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import tiny_folders
import torch
from small_clips import batch, features, make

from thrifty import models
from thrifty.core.errors import BrokenArtifact, NoSuchSetting, Unfit
from thrifty.models.ragged import is_ragged, sizes_of
from thrifty.tinyclip import Masks, Shape, Tower, inherit, prune
from thrifty.tinyclip.sparsity import Lagrangian, expected_size, ramp, sparsity

ALL = ("hidden", "heads", "inner", "layers")


def gated(model: Any, parts: tuple[str, ...] = ALL, seed: int = 0) -> list[Masks]:
    """Masks on both towers with log-odds at random, settled."""
    torch.manual_seed(seed)
    masks = [Masks(tower, parts) for tower in (model.vision_model, model.text_model)]
    for each in masks:
        for gates in each.all():
            gates.alpha.data = torch.empty_like(gates.alpha).uniform_(-3.0, 3.0)
        each.settle()
    return masks


@pytest.mark.parametrize("parts", [ALL, ("hidden",), ("heads", "inner"), ("layers",), ("inner",)])
def test_a_pruned_model_answers_as_the_gated_one(teacher: Any, parts: tuple[str, ...]) -> None:
    before = features(teacher)
    masks = gated(teacher, parts)
    with ExitStack() as acting:
        for each in masks:
            acting.enter_context(each.acting())
        wanted = features(teacher)
    assert all(torch.equal(a, b) for a, b in zip(features(teacher), before, strict=True)), "gates leave nothing behind"
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(wanted, before, strict=True)), "gates do something"
    whole = sum(p.numel() for p in teacher.parameters())
    prune(teacher, masks)
    for found, gates in zip(features(teacher), wanted, strict=True):
        torch.testing.assert_close(found, gates, atol=2e-6, rtol=1e-5)
    assert sum(p.numel() for p in teacher.parameters()) < whole


def test_open_gates_change_nothing(teacher: Any) -> None:
    masks = [Masks(tower, ALL) for tower in (teacher.vision_model, teacher.text_model)]
    before = features(teacher)
    with masks[0].acting(), masks[1].acting():
        for each in masks:
            each.settle()
        settled = features(teacher)
        for each in masks:
            each.draw()
        drawn = features(teacher)
    for wanted, one, other in zip(before, settled, drawn, strict=True):
        torch.testing.assert_close(one, wanted, atol=2e-4, rtol=1e-3)  # a gate at 10 lets 0.999994 through
        torch.testing.assert_close(other, wanted)
    assert not set(map(id, masks[0].parameters())) & set(map(id, teacher.parameters()))


def test_gates_get_gradients(teacher: Any) -> None:
    masks = [Masks(tower, ALL) for tower in (teacher.vision_model, teacher.text_model)]
    with masks[0].acting(), masks[1].acting():
        for each in masks:
            for gates in each.all():
                gates.alpha.data.fill_(0.3)
            each.values = {name: gates.sample(torch.full_like(gates.alpha, 0.4)) for name, gates in each.gates.items()}
        out = teacher(**batch())
    (out.image_embeds.square().sum(0).std() + out.text_embeds[:, 0].sum()).backward()
    for each in masks:
        for name, gates in each.gates.items():
            assert gates.alpha.grad is not None and gates.alpha.grad.abs().max() > 0, name


def test_expected_sizes(teacher: Any) -> None:
    tower, d, f = teacher.vision_model, 32, 64
    blocks = sum(p.numel() for layer in tower.encoder.layers for name, p in layer.named_parameters() if "norm" not in name)
    expected, whole = expected_size(Masks(tower, ()))
    assert whole == blocks == 3 * (4 * d * d + 4 * d + 2 * d * f + d + f) and float(expected) == whole
    masks = Masks(tower, ("hidden", "heads", "inner"))
    torch.manual_seed(2)
    for gates in masks.all():
        gates.alpha.data = torch.randn_like(gates.alpha)
    hidden = masks.chance("hidden")
    total = 0.0
    for i in range(3):
        heads, inner = masks.chance(f"heads.{i}"), masks.chance(f"inner.{i}")
        total += float(torch.outer(hidden, heads).sum()) * (4 * d * d + 4 * d) / 4 / d + 2 * float(torch.outer(hidden, inner).sum())
    assert float(expected_size(masks)[0]) == pytest.approx(total, rel=1e-5)
    layers = Masks(tower, ("heads", "inner", "layers"))
    layers.gates["attention"].alpha.data = torch.tensor([0.0, -2.0, 10.0])
    chances = [0.8318221840, 0.4009752644, 0.9999908]
    mostly = 0.9999908
    wanted = sum(chances) * mostly * (4 * d * d + 4 * d) + 3 * mostly * mostly * (2 * d * f + d + f)
    assert float(expected_size(layers)[0]) == pytest.approx(wanted, rel=1e-5)


def test_the_price_of_size(teacher: Any) -> None:
    masks = gated(teacher, ("heads", "inner"))
    whole = [expected_size(each) for each in masks]
    e = [1 - float(expected) / size for expected, size in whole]
    both = 1 - sum(float(expected) for expected, _ in whole) / sum(size for _, size in whole)
    assert float(sparsity(masks)) == pytest.approx(both, rel=1e-5) and 0 < both < 1
    price = Lagrangian(2)
    gap = 0.9 - both
    assert float(price(masks, 0.9, True).detach()) == pytest.approx(10 * gap + 10 * gap**2, rel=1e-4)
    assert float(price(masks, 0.9, False).detach()) == pytest.approx(sum(10 * (0.9 - x) + 10 * (0.9 - x) ** 2 for x in e), rel=1e-4)
    assert float(price(masks, both / 2, True).detach()) == 0, "to be smaller than asked costs nothing"
    up = torch.optim.Adam(price.parameters(), 0.02, maximize=True)
    price(masks, 0.9, True).backward()
    assert masks[0].all()[0].alpha.grad is not None
    up.step()
    assert (price.first > 10).all() and (price.second > 10).all()
    assert [ramp(0.5, step, 10) for step in (0, 4, 9, 50)] == pytest.approx([0.05, 0.25, 0.5, 0.5]) and ramp(0.5, 0, 0) == 0.5


def test_a_model_of_unlike_layers_is_saved_and_loaded(tmp_path: Path) -> None:
    folder = tiny_folders.clip(tmp_path / "clip")
    backbone = models.load(str(folder), "contrastive")
    model: Any = backbone.model
    masks = gated(model, seed=3)
    masks[0].gates["attention"].alpha.data = torch.tensor([-4.0, 4.0])
    masks[0].settle()
    prune(model, masks)
    assert is_ragged(model.config) and sizes_of(model.vision_model)[1][0][0] == 0, "a block without attention"
    model.save_pretrained(tmp_path / "small")
    backbone.preprocess.save_pretrained(tmp_path / "small")
    again: Any = models.load(str(tmp_path / "small"), "contrastive")
    assert again.source["parameters"] == sum(p.numel() for p in model.parameters()) < backbone.source["parameters"]
    inputs = {**batch(), "input_ids": batch()["input_ids"].clamp(max=30)}
    inputs["input_ids"][:, -2] = 3
    with torch.no_grad():
        for ours, theirs in ((model(**inputs), again.model(**inputs)),):
            assert torch.equal(ours.image_embeds, theirs.image_embeds) and torch.equal(ours.text_embeds, theirs.text_embeds)
    classifier = models.load(str(tmp_path / "small"), "image-classification", ["a b", "c"])
    with torch.no_grad():
        assert classifier.model(inputs["pixel_values"])["logits"].shape == (5, 2)
    with pytest.raises(Unfit, match="pruned one by one"):
        inherit(model, Shape(Tower(1, 8), Tower(1, 8)))
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    config["vision_config"]["ragged"]["heads"] = [1]
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BrokenArtifact, match="sizes of 2 layers"):
        models.load(str(tmp_path / "small"), "contrastive")
    config["vision_config"]["ragged"]["heads"] = [2, 2]
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    with pytest.raises(BrokenArtifact, match="in another shape"):
        models.load(str(tmp_path / "small"), "contrastive")


def test_layers_that_stay_alike_need_no_words_of_their_own(tmp_path: Path) -> None:
    model = make(width=32)
    masks = [Masks(tower, ("inner",)) for tower in (model.vision_model, model.text_model)]
    for each in masks:
        for gates in each.all():
            gates.alpha.data[: len(gates.alpha) // 2] = -30.0
        each.settle()
    prune(model, masks)
    assert not is_ragged(model.config) and model.config.vision_config.intermediate_size == 32
    model.save_pretrained(tmp_path / "plain")
    again = type(model).from_pretrained(tmp_path / "plain").eval()
    assert all(torch.equal(a, b) for a, b in zip(features(again), features(model), strict=True))


def test_pruning_twice(teacher: Any) -> None:
    prune(teacher, gated(teacher, ("heads", "inner"), seed=1))
    second = gated(teacher, ("hidden", "heads", "inner"), seed=5)
    with second[0].acting(), second[1].acting():
        wanted = features(teacher)
    copied = copy.deepcopy(teacher)
    prune(teacher, second)
    for found, gates in zip(features(teacher), wanted, strict=True):
        torch.testing.assert_close(found, gates, atol=2e-6, rtol=1e-5)
    assert expected_size(Masks(copied.vision_model, ()))[1] > expected_size(Masks(teacher.vision_model, ()))[1]


def test_gates_on_nothing_known(teacher: Any) -> None:
    with pytest.raises(NoSuchSetting, match="no gates on 'head'. Did you mean 'heads'"):
        Masks(teacher.text_model, ("head",))

"""L2-SP: the penalty and its gradient by hand, what counts as head and what as body, and what it is without its weights."""
from __future__ import annotations

import pytest
import torch
from backbones import count, shake, tiny
from small_classifiers import attach, batch, network, resnet50, steps, task
from torch import nn

import thrifty
from thrifty.core.errors import NoSuchSetting
from thrifty.methods import find


def test_the_worked_example() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 2.0]])
    method = thrifty.L2SP(alpha=1.0, beta=7.0)
    at = thrifty.attach(model, method, example=torch.ones(1, 2))
    assert float(method.penalty(at)) == 0
    model[0].weight.data = torch.tensor([[1.5, 1.0]])
    penalty = method.penalty(at)
    assert float(penalty) == 0.625
    penalty.backward()
    assert model[0].weight.grad.tolist() == [[0.5, -1.0]]


def test_body_is_drawn_back_and_head_to_zero() -> None:
    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    method = thrifty.L2SP(alpha=0.3, beta=0.7)
    at = attach(model, method)
    start = method.penalty(at)
    head = [name for name in before if name.startswith("classifier")]
    assert float(start) == pytest.approx(0.35 * sum(float(before[name].square().sum()) for name in head))
    start.backward()
    assert all(not p.grad.any() for name, p in model.named_parameters() if name not in head)
    shake(at, 0.1)
    model.zero_grad()
    method.penalty(at).backward()
    for name, p in model.named_parameters():
        wanted = 0.7 * p if name in head else 0.3 * (p - before[name])
        torch.testing.assert_close(p.grad, wanted.detach())
    norms = [name for name in before if "normalization" in name]
    assert norms and all(model.get_parameter(name).grad.any() for name in norms)  # scales and shifts are weights too


@pytest.mark.parametrize("also_train", ["head", None])
def test_the_head_is_found_by_its_place_too(also_train: str | None) -> None:
    model = network()
    method = thrifty.L2SP(alpha=0.0, beta=2.0)
    at = thrifty.attach(model, method, also_train=also_train)
    assert float(method.penalty(at)) == pytest.approx(sum(float(p.square().sum()) for p in model.classifier.parameters()))


def test_the_words_of_a_language_model_are_no_head() -> None:
    method = thrifty.L2SP(alpha=0.0, beta=1.0)
    for kind in ("t5", "llama"):
        assert float(method.penalty(thrifty.attach(tiny(kind), method))) == 0


def test_without_weights_it_is_fine_tuning() -> None:
    answers = []
    for method in (thrifty.L2SP(alpha=0.0, beta=0.0, head_factor=1.0), thrifty.FullFineTuning()):
        model = network()
        at = attach(model, method)
        optimiser = torch.optim.AdamW(method.groups(at, 1e-2, 0.0))
        for i in range(2):
            optimiser.zero_grad()
            (method.loss(at, task(model), model, batch(seed=i))[0] + method.penalty(at)).backward()
            optimiser.step()
        answers.append(model(pixel_values=batch()["pixel_values"]).logits)
    torch.testing.assert_close(*answers)


def test_it_keeps_weights_nearer_to_the_source() -> None:
    gaps = []
    for alpha in (0.0, 10.0):
        model, method = network(), thrifty.L2SP(alpha=alpha, beta=0.0)
        at = attach(model, method)
        steps(at, method, task(model), 4)
        gaps.append(sum(float((p - at.base[n]).square().sum()) for n, p in model.named_parameters() if "classifier" not in n))
    assert gaps[1] < 0.5 * gaps[0]


def test_the_head_learns_faster_and_nothing_decays() -> None:
    model, method = network(), thrifty.L2SP()
    at = attach(model, method)
    groups = method.groups(at, 1e-3, 0.5)
    head = {id(p) for p in model.classifier.parameters()}
    assert all(group["weight_decay"] == 0 for group in groups)
    assert {id(p) for group in groups if group["lr"] == 1e-2 for p in group["params"]} == head
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert {group["lr"] for group in groups} == {1e-3, 1e-2} and groups[0]["lr"] == 1e-3
    full = thrifty.FullFineTuning(head_factor=5.0)
    at.detach()
    found = full.groups(attach(model, full), 1e-3, 0.5)
    assert {(group["lr"], group["weight_decay"]) for group in found} == {(1e-3, 0.5), (1e-3, 0.0), (5e-3, 0.5), (5e-3, 0.0)}


def test_published_count() -> None:
    assert count(thrifty.attach(resnet50(), thrifty.L2SP())) == 23_508_032
    assert count(thrifty.attach(resnet50(200), thrifty.L2SP())) == 23_508_032 + 2049 * 200


@pytest.mark.parametrize("settings", [{"alpha": -1.0}, {"beta": -0.1}, {"head_factor": 0.0}])
def test_refused_settings(settings: dict[str, float]) -> None:
    with pytest.raises(NoSuchSetting, match=next(iter(settings))):
        find("l2sp").make(**settings).check()

"""Co-Tuning: reference arrays, the relationship by other software, the loss by hand, and the source head's life."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from backbones import count, golden
from small_classifiers import CLASSES, SOURCE, attach, batch, batches, network, old_head, resnet50, source_logits, steps, task
from torch import Tensor

import thrifty
from thrifty.core.errors import BadData, NoSuchSetting, ThriftyError, Unfit
from thrifty.methods import find
from thrifty.methods.co_tuning import RELATIONSHIP, agreement
from thrifty.methods.guidance.relationship import STRENGTHS, fit, hold_out, relate_directly, relate_in_reverse

P = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1]])


def test_reference_arrays() -> None:
    g = golden("vision_co_tuning")
    R = relate_directly(g["in/collected_source_probs"], g["in/collected_labels"], len(g["out/relationship"]))
    torch.testing.assert_close(R.float(), g["out/relationship"], atol=1e-6, rtol=0)
    logits = g["in/source_logits"].requires_grad_()
    loss = agreement(logits, R.float(), g["in/labels"])
    assert float(loss) == pytest.approx(g["out/loss"], abs=1e-6)
    loss.backward()
    torch.testing.assert_close(logits.grad, g["grad/source_logits"], atol=1e-6, rtol=0)


def test_the_worked_example() -> None:
    R = relate_directly(P, torch.tensor([0, 0, 1, 1]), 2)
    torch.testing.assert_close(R, torch.tensor([[0.65, 0.25, 0.10], [0.15, 0.75, 0.10]], dtype=torch.float64), atol=1e-7, rtol=0)


def test_a_relationship_of_one_class_each_is_cross_entropy() -> None:
    logits, labels, mapped = torch.randn(5, 4), torch.tensor([0, 1, 2, 1, 0]), torch.tensor([3, 0, 2])
    R = torch.nn.functional.one_hot(mapped, 4).float()
    torch.testing.assert_close(agreement(logits, R, labels), torch.nn.functional.cross_entropy(logits, mapped[labels]))


def collected(n: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    logits = 2 * torch.randn(3, 6, generator=generator, dtype=torch.float64)[labels]
    return (logits + torch.randn(n, 6, generator=generator, dtype=torch.float64)).softmax(1), labels


def test_the_reverse_relationship_by_other_software() -> None:
    linear_model, optimize = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("scipy.optimize")
    p, y = (t.numpy() for t in collected())
    held = np.array([i // 3 % 5 == 4 for i in range(60)])  # every fifth row of each of the three classes
    assert np.array_equal(hold_out(torch.from_numpy(y)).numpy(), held)
    best, most = None, -1.0
    for strength in STRENGTHS:
        model = linear_model.LogisticRegression(C=strength, fit_intercept=False, max_iter=20_000, tol=1e-10).fit(p[~held], y[~held])
        if (right := float((model.predict(p[held]) == y[held]).mean())) >= most:
            best, most = model.coef_, right
    said = p[held] @ best.T
    nll = lambda scale: -np.mean([np.log(softmax(scale * row)[label]) for row, label in zip(said, y[held], strict=True)])  # noqa: E731
    scale = optimize.minimize_scalar(nll, bounds=(0, 50), method="bounded", options={"xatol": 1e-10}).x
    joint = np.array([softmax(scale * column) for column in best.T]) * p.mean(0)[:, None]
    found = relate_in_reverse(torch.from_numpy(p), torch.from_numpy(y), 3)
    np.testing.assert_allclose(found.numpy(), (joint / joint.sum(0)).T, atol=2e-3)
    np.testing.assert_allclose(found.sum(1).numpy(), 1.0)


def softmax(row: Any) -> Any:
    e = np.exp(row - row.max())
    return e / e.sum()


def test_the_regression_is_at_its_minimum() -> None:
    p, y = collected()
    W = fit(p, y, torch.zeros(3, 6, dtype=torch.float64), 3.0)
    gradient = W / 3.0 + ((p @ W.T).softmax(1) - torch.nn.functional.one_hot(y, 3)).T @ p
    assert float(gradient.abs().max()) < 1e-5


def test_few_rows_are_both_fitted_and_held() -> None:
    R = relate_in_reverse(P, torch.tensor([0, 0, 1, 1]), 2)
    assert R.shape == (2, 3) and float(R[0, 0]) > float(R[1, 0]) and float(R[1, 1]) > float(R[0, 1])


@pytest.mark.parametrize("relate", [relate_directly, relate_in_reverse])
def test_a_class_without_rows(relate: Any) -> None:
    with pytest.raises(BadData, match="none of class 1 "):
        relate(P, torch.tensor([0, 0, 2, 2]), 3)


@pytest.mark.parametrize("relationship", ["direct", "reverse"])
def test_it_is_learned_from_the_initial_network_at_rest(relationship: str) -> None:
    model = network().train()
    at = attach(model, thrifty.CoTuning(relationship=relationship, calibration=0.5), batches=batches(3), source_head=old_head())
    twin = network()
    logits = torch.cat([source_logits(twin, b) for b in batches(3)]).detach()
    labels = torch.cat([b["labels"] for b in batches(3)])
    wanted = relate_directly(logits.softmax(1), labels, CLASSES) if relationship == "direct" else \
        relate_in_reverse((0.5 * logits).softmax(1), labels, CLASSES)
    torch.testing.assert_close(at.memory[RELATIONSHIP], wanted.float(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(at.memory[RELATIONSHIP].sum(1), torch.ones(CLASSES))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))


def test_the_loss_is_that_of_both_heads() -> None:
    model, mine = network(), batch()
    method = thrifty.CoTuning(relationship="direct", weight=2.3)
    at = attach(model, method, batches=batches(), source_head=old_head())
    loss, rows = method.loss(at, task(model), model, mine)
    R, logits = at.memory[RELATIONSHIP], source_logits(model, mine)
    wanted = torch.nn.functional.cross_entropy(model(mine["pixel_values"]).logits.float(), mine["labels"])
    for b in range(6):
        wanted = wanted - 2.3 / 6 * (R[mine["labels"][b]] * logits[b].log_softmax(0)).sum()
    assert rows == 6 and float(loss) == pytest.approx(float(wanted), rel=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in at.parameters())


def test_without_weight_it_is_fine_tuning() -> None:
    answers = []
    for method in (thrifty.CoTuning(weight=0.0), thrifty.FullFineTuning(head_factor=10.0)):
        model = network()
        at = attach(model, method, batches=batches(), source_head=old_head())
        steps(at, method, task(model))
        answers.append(model.eval()(batch()["pixel_values"]).logits)
    torch.testing.assert_close(*answers)


def test_the_source_head_trains_and_goes() -> None:
    model, method = network(), thrifty.CoTuning()
    at = attach(model, method, batches=batches(), source_head=old_head())
    edit: Any = next(iter(at.edits.values()))
    torch.testing.assert_close(edit.linear.weight, old_head()["classifier.1.weight"].double())
    assert count(at) == sum(p.numel() for n, p in model.named_parameters() if "edits" not in n) + 17 * SOURCE
    groups = method.groups(at, 1e-3, 0.0)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rates[id(edit.linear.weight)] == 1e-3 and rates[id(model.classifier[1].weight)] == 1e-2
    answer = model.eval()(batch()["pixel_values"]).logits
    steps(at, method, task(model))
    assert not torch.allclose(edit.linear.weight, old_head()["classifier.1.weight"].double())
    before = model.eval()(batch()["pixel_values"]).logits
    method.finish(at)
    assert not at.plan and torch.equal(model(batch()["pixel_values"]).logits, before) and not torch.allclose(before, answer)


def test_published_count() -> None:
    head = {"classifier.1.weight": torch.empty(1000, 2048, device="meta"), "classifier.1.bias": torch.empty(1000, device="meta")}
    at = thrifty.attach(resnet50(200), thrifty.CoTuning(), source_head=head)
    assert count(at) == 25_557_032 + 2049 * 200  # the whole ResNet-50 with its 1000 classes, and the new head


def test_refusals() -> None:
    with pytest.raises(Unfit, match="source_head="):
        attach(network(), thrifty.CoTuning(), batches=batches())
    with pytest.raises(Unfit, match="does not read"):
        attach(network(), thrifty.CoTuning(), batches=batches(), source_head=old_head(7))
    with pytest.raises(ThriftyError, match="batches="):
        attach(network(), thrifty.CoTuning(), source_head=old_head())
    with pytest.raises(ThriftyError, match="no row of data"):
        attach(network(), thrifty.CoTuning(), batches=iter([]), source_head=old_head())
    with pytest.raises(BadData, match="class 2 "):
        attach(network(), thrifty.CoTuning(), batches=iter([batch(2)]), source_head=old_head())
    for name, value in (("relationship", "both"), ("weight", -1.0), ("calibration", 0.0)):
        with pytest.raises(NoSuchSetting, match=name):
            find("cotuning").make(**{name: value}).check()

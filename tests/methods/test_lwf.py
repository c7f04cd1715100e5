"""LWF: the first answers of the source head, recorded by hand, and how far it may go from them."""
from __future__ import annotations

import pytest
import torch
from backbones import shake
from small_classifiers import attach, batch, network, old_head, source_logits, steps, task

import thrifty
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.methods import find
from thrifty.methods.guidance.source_head import source_head


def test_the_loss_is_recomputed_from_recorded_answers() -> None:
    model, mine = network(), batch()
    recorded = source_logits(network(), mine).detach()
    method = thrifty.LWF(weight=4.0, temperature=3.0)
    at = attach(model, method, source_head=old_head())
    model.eval()
    start, _ = method.loss(at, task(model), model, mine)
    assert float(start) == pytest.approx(float(task(model).loss(model, mine)[0]), rel=1e-5)  # nothing is forgotten yet
    shake(at, 0.2)
    loss, rows = method.loss(at, task(model), model, mine)
    f = model.resnet(mine["pixel_values"]).pooler_output.flatten(1)
    now = source_head(at).linear(f)
    p, q = (recorded / 3).softmax(1), (now / 3).softmax(1)
    wanted = float(task(model).loss(model, mine)[0]) + 4.0 * float((p * (p / q).log()).sum(1).mean())
    assert rows == 6 and float(loss) == pytest.approx(wanted, rel=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in at.parameters())


def test_a_heavy_weight_forgets_less_and_the_head_goes() -> None:
    old = {f"classifier.{name}": t for name, t in zip(("weight", "bias"), old_head().values(), strict=True)}
    pixels, drift = batch(side=16)["pixel_values"], []
    for weight in (0.0, 50.0):
        model, method = network("vit"), thrifty.LWF(weight=weight)
        before = (model.vit(pixels)[0][:, 0] @ old["classifier.weight"].double().T + old["classifier.bias"]).log_softmax(1)
        at = attach(model, method, side=16, source_head=old)
        steps(at, method, task(model), 8, 1e-3, side=16)
        now = source_head(at).linear(model.eval().vit(pixels)[0][:, 0]).log_softmax(1)
        drift.append(float((now - before).square().mean()))
        method.finish(at)
        assert not at.plan
    assert drift[1] < 0.5 * drift[0]


def test_refusals() -> None:
    with pytest.raises(Unfit, match="source_head="):
        attach(network(), thrifty.LWF())
    for name, value in (("weight", -1.0), ("temperature", 0.0)):
        with pytest.raises(NoSuchSetting, match=name):
            find("learning-without-forgetting").make(**{name: value}).check()


def test_several_steps_are_finite() -> None:
    model, method = network(), thrifty.LWF()
    at = attach(model, method, source_head=old_head())
    assert torch.tensor(steps(at, method, task(model), 3)).isfinite().all()

"""StochNorm: both branches by hand, the statistics that move, its two ends, and that nothing is left of it."""
from __future__ import annotations

import copy

import pytest
import torch
from backbones import count, tiny
from small_classifiers import attach, batch, network, resnet50, steps, task
from torch import Tensor, nn

import thrifty
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.methods import find


class One(nn.Module):
    """A batch norm and a head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        self.head = nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize(("p", "wanted"), [(1.0, [-1.0, 1.0]), (0.0, [1.0, 3.0])])
def test_the_worked_example(p: float, wanted: list[float]) -> None:
    model = One(1).train()
    thrifty.attach(model, thrifty.StochNorm(p=p), example=torch.randn(4, 1))
    answer = model.norm(torch.tensor([[1.0], [3.0]]))
    torch.testing.assert_close(answer.flatten(), torch.tensor(wanted), atol=2e-5, rtol=0)
    assert float(model.norm.running_mean) == pytest.approx(0.2) and float(model.norm.running_var) == pytest.approx(1.1)
    assert int(model.norm.num_batches_tracked) == 1


def test_every_channel_is_one_of_two_and_is_drawn_for_the_batch() -> None:
    model = One(400).train()
    with torch.no_grad():
        model.norm.weight.uniform_(0.5, 2.0)
        model.norm.running_mean.normal_()
    x = torch.randn(7, 400)
    mean, weight, bias = model.norm.running_mean.clone(), model.norm.weight.detach(), model.norm.bias.detach()
    thrifty.attach(model, thrifty.StochNorm(p=0.25), example=x)
    out = model.norm(x)
    batchwise = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() * weight + bias
    running = (x - mean) / (1 + 1e-5) ** 0.5 * weight + bias
    from_batch = torch.isclose(out, batchwise, atol=1e-4).all(0)
    assert torch.equal(from_batch, ~torch.isclose(out, running, atol=1e-4).all(0))
    assert 60 < int(from_batch.sum()) < 140
    assert not torch.equal(model.norm(x), out)  # another draw
    model.eval()
    still = model.norm.running_mean.clone()
    torch.testing.assert_close(model.norm(x), (x - still) / (model.norm.running_var + 1e-5).sqrt() * weight + bias)
    assert torch.equal(model.norm.running_mean, still)


def test_gradients_flow_through_the_branch_that_was_drawn() -> None:
    model = One(40).train()
    thrifty.attach(model, thrifty.StochNorm(), example=torch.randn(4, 40))
    x = torch.randn(5, 40, requires_grad=True)
    model.norm(x)[0].sum().backward()
    reached = (x.grad[1:] != 0).any(0)  # the batch's statistics tie the other rows to the first
    assert 5 < int(reached.sum()) < 35 and bool(x.grad[0].all())


def test_p_one_is_ordinary_fine_tuning() -> None:
    answers = []
    for method in (thrifty.StochNorm(p=1.0), thrifty.FullFineTuning(head_factor=10.0)):
        model = network()
        at = attach(model, method)
        steps(at, method, task(model))
        answers.append(model.eval()(batch()["pixel_values"]).logits)
    torch.testing.assert_close(*answers)


def test_running_statistics_before_the_step_and_moving_after_it() -> None:
    model, other = network(), network()
    method = thrifty.StochNorm(p=0.0)
    at = attach(model, method)
    pixels = batch()["pixel_values"]
    model.train()
    torch.testing.assert_close(model(pixels).logits, other(pixels).logits)  # as in evaluation
    moved = [not torch.equal(a.running_mean, b.running_mean) for a, b in zip(norms(model), norms(other), strict=True)]
    assert all(moved) and len(moved) == len(at.plan) // 2
    method.finish(at)
    assert not at.plan and [type(m) for m in norms(model)] == [type(m) for m in norms(other)]
    at.detach()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_batch_norm_with_an_activation_inside() -> None:
    class Active(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    model = nn.Sequential(Active(3), nn.Flatten(), nn.Linear(12, 2)).train()
    twin = copy.deepcopy(model).eval()
    x = torch.randn(5, 3, 2, 2)
    thrifty.attach(model, thrifty.StochNorm(p=0.0), example=x)
    torch.testing.assert_close(model(x), twin(x))


def test_counts_and_refusals() -> None:
    at = thrifty.attach(resnet50(), thrifty.StochNorm())
    assert count(at) == 23_508_032 and len(at.plan) == 2 * 53
    with pytest.raises(Unfit, match="no batch norm"):
        thrifty.attach(tiny("vit"), thrifty.StochNorm())
    with pytest.raises(NoSuchSetting, match="p must be"):
        find("stoch-norm").make(p=1.5).check()

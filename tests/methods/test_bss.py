"""BSS: the spectrum by hand, its gradient from singular vectors, around several methods."""
from __future__ import annotations

import pytest
import torch
from backbones import tiny
from small_classifiers import attach, batch, network, steps, task
from torch import Tensor

import thrifty
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.methods import find
from thrifty.methods.bss import smallest

F = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0], [3.0, 1.0, 2.0]], dtype=torch.float64)


def test_the_worked_example() -> None:
    torch.testing.assert_close(smallest(F, 1).item(), 0.9683255065, atol=1e-9, rtol=0)
    wanted = torch.tensor([0.984035, 1.721920, 4.131182], dtype=torch.float64).square().cumsum(0)
    torch.testing.assert_close(torch.stack([smallest(F, k) for k in (1, 2, 3)]), wanted, atol=1e-5, rtol=0)
    assert smallest(F, 3).item() == pytest.approx(21.0) == smallest(F, 9).item()
    assert smallest(F.float(), 1).item() == pytest.approx(0.9683255, rel=1e-6)


@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
def test_the_gradient_is_that_of_singular_values(shape: tuple[int, int]) -> None:
    features = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    U, S, V = torch.linalg.svd(features.detach(), full_matrices=False)
    value = smallest(features, 2)
    value.backward()
    assert value.item() == pytest.approx(float(S[-2:].square().sum()))
    torch.testing.assert_close(features.grad, sum(2 * S[i] * torch.outer(U[:, i], V[i]) for i in (-1, -2)))


def test_rank_deficient_and_coinciding_spectra() -> None:
    same = torch.ones(3, 5, dtype=torch.float64).requires_grad_()
    value = smallest(same, 1)
    value.backward()
    assert abs(value.item()) < 1e-12 and bool(same.grad.isfinite().all())
    even = torch.eye(3, 5, dtype=torch.float64).requires_grad_()
    smallest(even, 1).backward()
    assert bool(even.grad.isfinite().all()) and float(even.grad.norm()) == pytest.approx(2.0)


@pytest.mark.parametrize("around", ["full", "l2-sp", "linear-probe"])
def test_the_loss_is_the_other_methods_and_the_shrunk_features(around: str) -> None:
    model = network()
    method = thrifty.BSS(around=around, eta=0.3, k=2)
    at = attach(model, method)
    mine = batch()
    loss, rows = method.loss(at, task(model), model, mine)
    with torch.no_grad():
        features = model.resnet(mine["pixel_values"]).pooler_output.flatten(1)
        wanted = torch.nn.functional.cross_entropy(model(mine["pixel_values"]).logits.float(), mine["labels"])
        wanted = wanted + 0.3 * torch.linalg.svdvals(features)[-2:].square().sum()
    assert rows == 6 and float(loss) == pytest.approx(float(wanted), rel=1e-5)
    assert float(method.penalty(at)) == float(find(around)().penalty(at))
    method.finish(at)
    assert not at.plan


def test_it_shrinks_the_smallest_singular_value() -> None:
    spectra: list[Tensor] = []
    for eta in (0.0, 10.0):
        model, method = network(), thrifty.BSS(eta=eta)
        at = attach(model, method)
        steps(at, method, task(model), 5)
        model.eval()
        spectra.append(torch.linalg.svdvals(model.resnet(batch()["pixel_values"]).pooler_output.flatten(1).detach()))
    assert spectra[1][-1] < spectra[0][-1]


def test_on_text_too_and_refused_where_tokens_answer() -> None:
    model = tiny("bert")
    at = thrifty.attach(model, thrifty.BSS(around="lora", settings_of={"rank": 2}), also_train="head")
    assert [row.edit for row in at.plan][-1] == "side-tap"
    with pytest.raises(Unfit, match="one vector per example"):
        thrifty.attach(tiny("bert-tokens"), thrifty.BSS())


@pytest.mark.parametrize(("settings", "name"), [({"k": 0}, "k"), ({"eta": -1.0}, "eta"), ({"around": "bss"}, "around"),
                                                ({"around": "nothing"}, "nothing"), ({"settings_of": {"rank": 2}}, "rank")])
def test_refused_settings(settings: dict[str, object], name: str) -> None:
    with pytest.raises(NoSuchSetting, match=name):
        find("batch-spectral-shrinkage").make(**settings).check()

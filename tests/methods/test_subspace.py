"""Intrinsic dimension: the projections, training through them, and the search."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import count, run, shake, tiny
from torch import Tensor, nn

import thrifty
from thrifty.core.errors import NoSuchSetting
from thrifty.methods.subspace import Projected, choose, draw, fastfood, hadamard, intrinsic_dimension


def attach(model: nn.Module, **more: Any) -> thrifty.Attachment:
    return thrifty.attach(model, thrifty.Subspace(**{"size": 5, **more}))


def projected(at: thrifty.Attachment) -> list[Any]:
    return [e for e in at.edits.values() if isinstance(e, Projected)]


def columns(at: thrifty.Attachment, size: int) -> Tensor:
    """P [total, size], read off the unit vectors."""
    found = []
    for i in range(size):
        with torch.no_grad():
            at.context.shared.u.copy_(F.one_hot(torch.tensor(i), size))
            parts = [t for e in projected(at) for t in e.change() if t is not None]
        found.append(torch.cat([t.flatten() for t in parts]))
    return torch.stack(found, 1)


def test_hadamard() -> None:
    from scipy.linalg import hadamard as matrix

    v = torch.randn(64, dtype=torch.float64)
    torch.testing.assert_close(hadamard(v), torch.from_numpy(matrix(64)).double() @ v)
    torch.testing.assert_close(hadamard(hadamard(v)), 64 * v)


def test_fastfood_is_its_product_of_matrices() -> None:
    from scipy.linalg import hadamard as matrix

    drawn = draw("fastfood", 11, 3, 11, torch.Generator().manual_seed(0))
    H = torch.from_numpy(matrix(16)).float()
    P = H @ torch.diag(drawn["G"]) @ torch.eye(16)[drawn["order"]] @ H @ torch.diag(drawn["signs"])
    u = torch.randn(3)
    torch.testing.assert_close(fastfood(u, 11, **drawn), (P @ F.pad(u, (0, 13)))[:11], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "within"), [("dense", 1e-5), ("fastfood", 0.2)])
def test_columns_have_unit_length(kind: str, within: float) -> None:
    model = tiny("vit")
    at = attach(model, projection=kind)
    P = columns(at, 5)
    assert P.shape == (2 * 4 * (16 * 16 + 16), 5)
    assert bool(((P.norm(dim=0) - 1).abs() < within).all())
    overlap = (P.T @ P).fill_diagonal_(0)
    assert float(overlap.abs().max()) < 0.2, "random directions in a large space are nearly orthogonal"


def test_the_start_is_the_model_and_one_vector_trains() -> None:
    model = tiny("vit")
    at = attach(model)
    assert torch.equal(run(model), run(tiny("vit"))) and count(at) == 5
    run(model).square().sum().backward()
    assert bool(at.context.shared.u.grad.all())


def test_the_identity_is_training_all() -> None:
    model, whole = (nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)) for _ in range(2))
    whole.load_state_dict(model.state_dict())
    method = thrifty.Subspace(size=14, projection="identity", where="linear")
    at = thrifty.attach(model, method, example=torch.zeros(1, 3))
    x, target = torch.randn(6, 3), torch.randn(6, 2)
    for net, trained in ((model, at.parameters()), (whole, list(whole.parameters()))):
        optimiser = torch.optim.SGD(trained, lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            F.mse_loss(net(x), target).backward()
            optimiser.step()
    torch.testing.assert_close(model(x), whole(x), rtol=1e-5, atol=1e-6)
    at.merge()
    torch.testing.assert_close(model[0].weight, whole[0].weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[2].bias, whole[2].bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "where"), [("vit", "attn.?|mlp.*"), ("resnet", "conv")])
def test_merged_is_unmerged(kind: str, where: str) -> None:
    model = tiny(kind)
    at = attach(model, where=where, projection="fastfood", size=20)
    shake(at, 1.0)
    logits = run(model)
    assert not torch.allclose(logits, run(tiny(kind)))
    at.merge()
    torch.testing.assert_close(run(model), logits, rtol=1e-4, atol=1e-5)


def test_a_file_holds_the_vector_alone(tmp_path: Path) -> None:
    model = tiny("vit")
    at = attach(model, seed=3)
    shake(at, 1.0)
    at.save(tmp_path / "adapter")
    assert list(at.state()) == ["shared:u"]
    other = tiny("vit")
    thrifty.load(other, tmp_path / "adapter")
    assert torch.equal(run(other), run(model))
    again = tiny("vit")
    theirs = attach(again, seed=4)
    theirs.load_state(at.state())
    assert not torch.allclose(run(again), run(model)), "another seed has other directions"


def test_the_search() -> None:
    asked: list[int] = []

    def score(size: int) -> float:
        asked.append(size)
        return {10: 0.5, 20: 0.81, 40: 0.9}[size]

    assert intrinsic_dimension(score, 0.9, [40, 10, 20]) == 20
    assert asked == [10, 20], "sizes are tried in rising order, and no more than needed"
    assert intrinsic_dimension(lambda size: 0.1, 0.9, [1, 2]) is None
    table = {("attn.?", 10): 0.85, ("mlp.*", 10): 0.6, ("mlp.*", 100): 0.9}
    assert choose(lambda where, size: table[where, size], {"mlp.*": 0.92, "attn.?": 0.9}, [10, 100]) == "attn.?"
    with pytest.raises(NoSuchSetting, match=r"none of attn\.\? reaches 90% of its score in up to 4 directions"):
        choose(lambda where, size: 0.0, {"attn.?": 0.9}, [2, 4])


def test_refusals() -> None:
    for settings, named in (({"size": 0}, "size"), ({"projection": "sparse"}, "projection")):
        with pytest.raises(NoSuchSetting, match=f"{named} must be"):
            attach(tiny("vit"), **settings)
    with pytest.raises(NoSuchSetting, match="is too many"):
        attach(tiny("vit"), size=10_000)
    with pytest.raises(NoSuchSetting, match="too few for the identity"):
        attach(tiny("vit"), projection="identity")

"""A Sequential calls every child it has: edits that live on one must not be in its way."""
from __future__ import annotations

import torch
from torch import nn

import thrifty


def test_edits_on_a_sequential_act_once_and_leave() -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    model, x = nn.Sequential(inner, nn.Linear(8, 3)), torch.randn(2, 5, 8)
    base, y = model(x), inner(x)
    at = thrifty.attach(model, thrifty.Bapna(rank=4, where="0"), example=x, roles={"^0$": "mlp"})
    torch.testing.assert_close(model(x), base)
    (edit,) = at.edits.values()
    nn.init.normal_(edit.up.weight)
    torch.testing.assert_close(inner(x), y + edit.branch(y))
    at.detach()
    assert torch.equal(model(x), base) and len(inner) == 3


def test_a_shared_module_on_a_sequential() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(2, 8)
    base = model(x)
    at = thrifty.attach(model, thrifty.Compacter(rank=4, norms=False, where="0"), example=x)
    nn.init.normal_(at.context.shared.A)
    (edit,) = at.edits.values()
    torch.testing.assert_close(model(x), base + edit.branch(base))

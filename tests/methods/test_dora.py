"""DoRA (Liu et al.): reference arrays, published counts, and what its equations promise."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from backbones import count, frozen_stay, golden, published, run, shake, tiny
from torch import nn

import thrifty
from thrifty.core.errors import CannotCombine, Unfit
from thrifty.methods.dora import Decomposed


def one_layer(bias: bool = True, **settings: object) -> tuple[nn.Sequential, thrifty.Attachment, Decomposed]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 6, bias, dtype=torch.float64))
    at = thrifty.attach(model, thrifty.DoRA(**{"rank": 4, "alpha": 8.0, "dropout": 0.0, "where": "0", **settings}))
    (edit,) = at.edits.values()
    return model, at, edit


def decomposed(W: torch.Tensor, edit: Decomposed) -> torch.Tensor:
    V = W + edit.scale * edit.B @ edit.A
    return edit.m[:, None] / V.norm(dim=1, keepdim=True) * V


@pytest.mark.parametrize("settings", [{}, {"dropout": 0.5}])
def test_reference_arrays(settings: dict) -> None:
    g = golden("nlp_dora_liu")
    model = nn.Sequential(nn.Linear(10, 6, dtype=torch.float64))
    model[0].load_state_dict({"weight": g["w/weight"], "bias": g["w/bias"]})
    method = thrifty.DoRA(**{"rank": g["hp/r"], "alpha": g["hp/alpha"], "dropout": 0.0, "where": "0", **settings})
    at = thrifty.attach(model.eval(), method)
    (edit,) = at.edits.values()
    torch.testing.assert_close(edit.m.detach(), g["out/magnitude_at_init"], atol=1e-12, rtol=0)
    torch.testing.assert_close(model(g["in/x"]).detach(), g["out/output_at_init"], atol=1e-12, rtol=0)
    with torch.no_grad():
        edit.A.copy_(g["w/lora_A"]), edit.B.copy_(g["w/lora_B"]), edit.m.copy_(g["w/magnitude"])
    y = model(g["in/x"])
    torch.testing.assert_close(y, g["out/y"], atol=1e-10, rtol=0)
    (y * g["in/probe"]).sum().backward()
    torch.testing.assert_close(edit.A.grad, g["grad/lora_A"], atol=1e-10, rtol=0)
    torch.testing.assert_close(edit.B.grad, g["grad/lora_B"], atol=1e-10, rtol=0)
    torch.testing.assert_close(edit.m.grad, g["grad/magnitude_column"].flatten(), atol=1e-10, rtol=0)
    at.merge()
    torch.testing.assert_close(model[0].weight.detach(), g["out/merged_weight"], atol=1e-10, rtol=0)
    torch.testing.assert_close(model(g["in/x"]).detach(), g["out/merged_output"], atol=1e-10, rtol=0)


def test_counts() -> None:
    assert count(thrifty.attach(published("bert-base"), thrifty.DoRA(rank=8, where="attn.q|attn.v"))) == 313_344
    model = published("llama-7b")
    assert count(thrifty.attach(model, thrifty.DoRA(rank=16))) == 28_925_952


def test_starts_exactly_as_the_base() -> None:
    for kind in ("bert", "gpt2", "llama"):
        model = tiny(kind)
        base = run(model)
        at = thrifty.attach(model, thrifty.DoRA(rank=2))
        assert torch.equal(run(model), base), kind
        assert any(name.endswith(".m") for name in frozen_stay(model, at))


def test_merged_rows_have_the_learned_magnitude() -> None:
    model, at, edit = one_layer()
    shake(at)
    x = torch.randn(3, 10, dtype=torch.float64)
    W, bias, m, y = model[0].weight.detach().clone(), model[0].bias, edit.m.detach().clone(), model(x)
    torch.testing.assert_close(y, x @ decomposed(W, edit).T + bias)
    at.merge()
    torch.testing.assert_close(model[0].weight.norm(dim=1), m.abs())
    torch.testing.assert_close(model(x), y)
    at.detach()
    assert torch.equal(model[0].weight, W)


def test_scaling_base_and_update_alike_changes_nothing() -> None:
    model, at, edit = one_layer(bias=False)
    shake(at)
    x = torch.randn(3, 10, dtype=torch.float64)
    y = model(x)
    with torch.no_grad():
        model[0].weight.mul_(2.5), edit.B.mul_(2.5)
    torch.testing.assert_close(model(x), y)


def test_the_norm_is_a_constant_unless_asked() -> None:
    for detach in (True, False):
        model, at, edit = one_layer(detach=detach)
        shake(at)
        x, probe = torch.randn(3, 10, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
        (model(x) * probe).sum().backward()
        A, B, m = (t.detach().clone().requires_grad_() for t in (edit.A, edit.B, edit.m))
        V = model[0].weight.detach() + edit.scale * B @ A
        n = V.norm(dim=1, keepdim=True)
        ((x @ (m[:, None] / (n.detach() if detach else n) * V).T) * probe).sum().backward()
        for mine, theirs in ((edit.A, A), (edit.B, B), (edit.m, m)):
            torch.testing.assert_close(mine.grad, theirs.grad)
        if detach:  # by hand: dL/dV = diag(m / n) dL/dW', and V = W + s B A
            by_hand = edit.scale * edit.B.T @ ((edit.m / n.flatten())[:, None] * (probe.T @ x))
            torch.testing.assert_close(edit.A.grad, by_hand)


def test_dropped_input_reaches_the_base_part_within_the_brackets() -> None:
    model, at, edit = one_layer(dropout=0.5)
    shake(at)
    model.train()
    x = torch.randn(3, 10, dtype=torch.float64)
    torch.manual_seed(4)
    y = model(x)
    torch.manual_seed(4)
    dropped = F.dropout(x, 0.5)
    W = model[0].weight
    V = W + edit.scale * edit.B @ edit.A
    g = edit.m / V.norm(dim=1)
    expected = x @ W.T + (g - 1) * (dropped @ W.T) + g * edit.scale * (dropped @ edit.A.T @ edit.B.T) + model[0].bias
    torch.testing.assert_close(y, expected)


def test_a_convolution() -> None:
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1).double()
    model, x = nn.Sequential(conv), torch.randn(2, 4, 9, 9, dtype=torch.float64)
    base = model(x)
    at = thrifty.attach(model, thrifty.DoRA(rank=2, dropout=0.0, where="conv"), example=x)
    assert torch.equal(model(x), base)
    shake(at)
    (edit,) = at.edits.values()
    V = conv.weight + edit.scale * torch.einsum("or,rihw->oihw", edit.B, edit.A)
    kernel = (edit.m / V.flatten(1).norm(dim=1)).view(-1, 1, 1, 1) * V
    y = model(x)
    torch.testing.assert_close(y, F.conv2d(x, kernel, conv.bias, 2, 1))
    at.merge()
    torch.testing.assert_close(model(x), y)


def test_fused_parts_and_half_precision() -> None:
    model = tiny("gpt2").double()
    at = thrifty.attach(model, thrifty.DoRA(rank=2, dropout=0.0))
    shake(at)
    y = run(model)
    at.merge()
    torch.testing.assert_close(run(model), y)
    half = tiny("bert").bfloat16()
    at = thrifty.attach(half, thrifty.DoRA(rank=2))
    assert {p.dtype for p in at.parameters()} == {torch.float32} and run(half).dtype == torch.bfloat16


def test_magnitudes_are_not_decayed() -> None:
    model = tiny("bert")
    method = thrifty.DoRA(rank=2)
    at = thrifty.attach(model, method)
    decay = {id(p): g["weight_decay"] for g in method.groups(at, 1e-3, 0.1) for p in g["params"]}
    assert {n.rpartition(":")[2]: decay[id(p)] for n, p in at.named_parameters()} == {"A": 0.1, "B": 0.1, "m": 0.0}


def test_refusals() -> None:
    _, _, edit = one_layer()
    with pytest.raises(CannotCombine):
        Decomposed.combine([edit, edit], [0.5, 0.5])
    with pytest.raises(Unfit, match="tokens"):
        thrifty.attach(nn.Sequential(nn.Embedding(4, 3)), thrifty.DoRA(where="0"))

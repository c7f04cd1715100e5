"""A frozen linear layer and thin products beside it as one operation: the same numbers as autograd finds for the composed one."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

import thrifty
from thrifty.core import fusing, hooks
from thrifty.core.edit import Edit
from thrifty.methods import make
from thrifty.methods.adalora import AdaLoRA
from thrifty.methods.dora import Decomposed
from thrifty.methods.lora import LowRank
from thrifty.methods.spt import DroppedLowRank
from thrifty.methods.unipelt import GatedLowRank
from thrifty.testing import tiny

DIN, DOUT = 6, 9


def layer(dtype: torch.dtype = torch.float64, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(DIN, DOUT, bias, dtype=dtype))


def stir(at: Any) -> None:
    with torch.no_grad():
        for p in at.parameters():
            p.add_(torch.randn_like(p) * 0.3)


@contextlib.contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Of each time that edits act on an output: whether they were fused."""
    seen: list[bool] = []

    def fuse(*args: Any) -> Tensor | None:
        y = fusing.fuse(*args)
        seen.append(y is not None)
        return y

    with monkeypatch.context() as patch:
        patch.setattr(hooks, "fuse", fuse)
        yield seen


@contextlib.contextmanager
def composed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Edits act one after the other, each with the graph that autograd makes."""
    with monkeypatch.context() as patch:
        patch.setattr(hooks, "fuse", lambda *_: None)
        yield


def answer(model: nn.Module, at: Any, x: Tensor, weight: Tensor) -> list[Tensor]:
    """Output, the gradient of the input if it wants one, and those of all that trains."""
    x = x.detach().requires_grad_(x.requires_grad)
    wanted = ([x] if x.requires_grad else []) + at.parameters()
    y = model(x)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), wanted)]


@pytest.mark.parametrize("wants", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_numbers_and_gradients_are_those_of_the_equation(wants: bool, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = layer(bias=bias)
    at = thrifty.attach(model, thrifty.LoRA(rank=2, alpha=3.0, where="0"))
    stir(at)
    (edit,) = at.edits.values()
    x, weight = torch.randn(2, 5, DIN, dtype=torch.float64, requires_grad=wants), torch.randn(2, 5, DOUT, dtype=torch.float64)
    with counted(monkeypatch) as fused:
        found = answer(model, at, x, weight)
    assert fused == [True]
    A, B = (t.detach().clone().requires_grad_(True) for t in (edit.A, edit.B))
    y = x @ model[0].weight.T + 1.5 * (x @ A.T @ B.T) + (model[0].bias if bias else 0)
    wanted = [y, *torch.autograd.grad((y * weight).sum(), ([x] if wants else []) + [A, B])]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("apart", [True, False])
def test_gradcheck_of_several_products_on_parts_of_a_layer(apart: bool) -> None:
    torch.manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    weight, spans = drawn(DOUT, DIN).detach(), ((0, 3, 0.5), (6, 9, 2.0))

    def run(x: Tensor, h: Tensor, bias: Tensor, *factors: Tensor) -> Tensor:
        y = F.linear(x, weight, bias).detach()
        return fusing.Products.apply(y, x, h if apart else None, weight, bias, spans, *factors)  # type: ignore[no-untyped-call]

    given = drawn(4, DIN), drawn(4, DIN), drawn(DOUT), drawn(2, DIN), drawn(3, 2), drawn(1, DIN), drawn(3, 1)
    if not apart:
        given = given[0], given[1].detach(), *given[2:]
    assert gradcheck(run, given) and gradgradcheck(run, given)


@pytest.mark.parametrize(("dtype", "auto", "close"), [
    (torch.float64, False, 1e-12), (torch.float32, False, 1e-5), (torch.bfloat16, False, 2e-2), (torch.float32, True, 2e-2)])
@pytest.mark.parametrize("count", [1, 2])
def test_in_every_precision_as_composed(dtype: torch.dtype, auto: bool, close: float, count: int,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    model = layer(dtype)
    ats = [thrifty.attach(model, thrifty.LoRA(rank=2 + i, where="0"), name=f"n{i}", seed=i) for i in range(count)]
    for at in ats:
        stir(at)
    x, weight = torch.randn(3, 7, DIN, dtype=dtype, requires_grad=True), torch.randn(3, 7, DOUT)
    with torch.autocast("cpu", torch.bfloat16, enabled=auto):
        with composed(monkeypatch):
            wanted = answer(model, ats[0], x, weight)
        with counted(monkeypatch) as fused:
            found = answer(model, ats[0], x, weight)
    assert fused == [True] and [t.dtype for t in found] == [t.dtype for t in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() <= close * other.norm()


def test_dropout_draws_as_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = layer().train()
    at = thrifty.attach(model, thrifty.LoRA(rank=2, dropout=0.5, where="0"))
    stir(at)
    x, weight = torch.randn(4, DIN, dtype=torch.float64, requires_grad=True), torch.randn(4, DOUT)
    torch.manual_seed(1)
    with composed(monkeypatch):
        wanted = answer(model, at, x, weight)
    torch.manual_seed(1)
    with counted(monkeypatch) as fused:
        found = answer(model, at, x, weight)
    assert fused == [True]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_columns_of_a_fused_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny.make("gpt2").to(torch.float64)
    model = backbone.fresh()
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="attn.q|attn.v"))
    stir(at)

    def gradients() -> list[Tensor]:
        y = backbone.logits(backbone.run(model))
        return [y.detach(), *torch.autograd.grad((y * y.detach().cos()).sum(), at.parameters())]

    with composed(monkeypatch):
        wanted = gradients()
    with counted(monkeypatch) as fused:
        found = gradients()
    assert all(fused) and len(fused) < len(at.edits)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


def test_of_a_frozen_A_the_input_is_not_kept() -> None:
    model = layer()
    at = thrifty.attach(model, make("lora-fa", rank=2, where="0"))
    stir(at)
    kept: list[torch.Size] = []
    x = torch.randn(50, DIN, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):  # type: ignore[func-returns-value]
        y = model(x)
    assert x.shape not in kept and torch.Size([50, 2]) in kept
    with pytest.raises(RuntimeError, match="frozen A"):
        torch.autograd.grad(y.square().sum(), at.parameters(), create_graph=True)


def test_what_is_no_product_or_is_seen_by_others_is_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, DIN, dtype=torch.float64)
    with counted(monkeypatch) as fused:
        model = layer()
        at = thrifty.attach(model, thrifty.LoRA(rank=2, where="0"), also_train="0.weight", example=x, tied="leave")
        model(x)
        assert not any(fused)  # the weight trains too
        at.detach()
        thrifty.attach(model, thrifty.LoRA(rank=2, where="0"))
        ia3 = thrifty.attach(model, thrifty.IA3(where="0"), name="other")
        model(x)
        assert not any(fused)  # a factor is no product
        ia3.detach()
        model(x)
        assert fused.pop()
        kept: list[Tensor] = []
        handle = model[0].register_forward_hook(lambda m, a, y: kept.append(y))
        model(x)
        assert not any(fused)  # somebody keeps what comes out
        handle.remove()
        y, pull = torch.func.vjp(model, x)
        torch.testing.assert_close(y, model(x))
        assert pull(torch.ones_like(y))[0].shape == x.shape


def test_a_kind_of_low_rank_edit_that_does_something_else_offers_no_product() -> None:
    for kind in (Decomposed, DroppedLowRank, GatedLowRank):
        assert kind.product is Edit.product

    class Other(LowRank):
        def update(self, x: Tensor) -> Tensor:
            return 2 * super().update(x)

    assert Other.product is Edit.product


def test_nothing_is_drawn_where_edits_are_composed_after_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model = layer().train()
    at = thrifty.attach(model, thrifty.LoRA(rank=2, dropout=0.5, where="0"))
    thrifty.attach(model, thrifty.LoRA(rank=2, dropout=0.5, where="0"), name="second")
    stir(at)
    x, weight = torch.randn(4, DIN, dtype=torch.float64, requires_grad=True), torch.randn(4, DOUT)
    torch.manual_seed(1)
    with composed(monkeypatch):
        wanted = answer(model, at, x, weight)
    torch.manual_seed(1)
    with counted(monkeypatch) as fused:
        found = answer(model, at, x, weight)
    assert fused == [False]  # each has a dropout of its own
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


def test_whoever_hooks_an_edit_is_called() -> None:
    model = layer()
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="0"))
    (edit,) = at.edits.values()
    calls: list[str] = []
    handles = [edit.register_forward_hook(lambda *_: calls.append("forward")),
               edit.register_full_backward_hook(lambda *_: calls.append("backward"))]
    x = torch.randn(3, DIN, dtype=torch.float64, requires_grad=True)
    model(x).sum().backward()
    handles[0].remove()
    model(x).sum().backward()
    assert calls == ["forward", "backward", "backward"]
    handles[1].remove()
    with torch.nn.modules.module.register_module_forward_hook(lambda m, *_: calls.append("all") if m is edit else None):
        model(x)
    assert calls[3:] == ["all"]


def test_a_weight_that_is_computed_anew_for_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = layer()
    torch.nn.utils.parametrizations.spectral_norm(model[0])
    at = thrifty.attach(model.train(), thrifty.LoRA(rank=2, where="0"), check=False)
    with counted(monkeypatch) as fused:
        model(torch.randn(3, DIN, dtype=torch.float64))
    assert fused == [False] and at.edits


@pytest.mark.parametrize("shape", [(DIN,), (0, DIN), (2, 3, 4, DIN)])
def test_inputs_of_any_shape_and_layout(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    model = layer()
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="0"))
    stir(at)
    x = torch.randn(shape[::-1], dtype=torch.float64).permute(*range(len(shape) - 1, -1, -1)).requires_grad_(True)
    weight = torch.randn(*shape[:-1], DOUT)
    with composed(monkeypatch):
        wanted = answer(model, at, x, weight)
    with counted(monkeypatch) as fused:
        found = answer(model, at, x, weight)
    assert fused == [True]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_what_comes_out_may_be_changed_in_place_and_what_went_in_may_not() -> None:
    model = layer()
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="0"))
    stir(at)
    x = torch.randn(3, DIN, dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(F.relu_(model(x).mul_(2)).sum(), [x, *at.parameters()])
    wanted = torch.autograd.grad(F.relu(model(x) * 2).sum(), [x, *at.parameters()])
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
    h = x * 1
    y = model(h)
    h.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_backward_pass_inside_of_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    model = layer(torch.float32)
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="0"))
    stir(at)
    x, weight = torch.randn(3, DIN, requires_grad=True), torch.randn(3, DOUT)
    found = []
    for inside in (False, True):
        y = model(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            found.append(torch.autograd.grad((y * weight).sum(), [x, *at.parameters()]))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_transforms_and_traces_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model = layer()
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="0"))
    stir(at)
    x = torch.randn(3, DIN, dtype=torch.float64)

    def run(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(model, weights, (x,))
        return y.square().sum()

    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    by_transform = torch.func.grad(lambda trained: run({**trained, **frozen}, x))({n: p.detach() for n, p in named.items()})
    by_graph = torch.autograd.grad(model(x).square().sum(), list(named.values()))
    for one, other in zip(by_transform.values(), by_graph, strict=True):
        torch.testing.assert_close(one, other)
    moved = {**named, "0.weight": frozen["0.weight"] * 2}
    torch.testing.assert_close(run(moved, x), (model(x) + x @ frozen["0.weight"].T).square().sum())
    rows = torch.vmap(model)(x)
    torch.testing.assert_close(rows, model(x))
    _, slope = torch.func.jvp(model, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(slope, model(torch.ones_like(x)) - model(torch.zeros_like(x)))
    with torch.inference_mode():
        torch.testing.assert_close(model(x.clone()), rows)
    traced = torch.jit.trace(model, x)
    torch.testing.assert_close(traced(x), rows)


def test_a_rehearsal_without_numbers_keeps_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    model = layer()
    thrifty.attach(model, thrifty.LoRA(rank=2, where="0"))
    x, mode = torch.randn(50, DIN, dtype=torch.float64, requires_grad=True), FakeTensorMode(allow_non_fake_inputs=True)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):  # type: ignore[func-returns-value]
        model(x)
        count = len(kept)
        with mode, counted(monkeypatch) as fused:
            y = model(mode.from_tensor(x))
    assert fused == [True] and y.shape == (50, DOUT) and kept[:count] == kept[count:]


def test_adalora_factors_train_through_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    model = layer()
    at = thrifty.attach(model, AdaLoRA(where="0"))
    stir(at)
    x, weight = torch.randn(4, DIN, dtype=torch.float64, requires_grad=True), torch.randn(4, DOUT)
    with composed(monkeypatch):
        wanted = answer(model, at, x, weight)
    with counted(monkeypatch) as fused:
        found = answer(model, at, x, weight)
    assert fused == [True] and len(found) == 2 + 3
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)

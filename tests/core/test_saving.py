"""What forward passes keep: fewer bytes, the same gradients, and nobody else's business."""
from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

import thrifty
from thrifty.core import saving
from thrifty.core.errors import NoSuchSetting
from thrifty.core.rebuilding import Mask, Whole
from thrifty.methods.memory.activation_memory import measure
from thrifty.testing import tiny

top = torch._C._autograd._top_saved_tensors_default_hooks  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _small_tensors_too(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(saving, "WORTH", 1)
    yield
    assert not _get_current_function_mode_stack() and top(True) is None, "something was left behind"


def put(name: str, where: str = "attn.?|mlp.*", dtype: torch.dtype = torch.float32) -> tuple[Any, nn.Module, Any]:
    backbone = tiny.make(name).to(dtype)
    model = backbone.fresh()
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where=where), activations="less")
    torch.manual_seed(3)
    with torch.no_grad():
        for p in at.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return backbone, model, at


def gradients(backbone: Any, model: nn.Module, at: Any, seed: int = 1) -> list[Tensor]:
    torch.manual_seed(seed)
    y = backbone.logits(backbone.run(model)).float()
    found = [y.detach(), *torch.autograd.grad((y * y.detach().cos()).sum(), at.parameters())]
    return [*found, torch.rand(1)]  # as many random numbers were drawn


def kept(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any], model: nn.Module) -> int:
    """Bytes that a saver holds, each piece of memory once, without the model's own."""
    held: dict[int, Tensor] = {}
    real = saving.Saver.pack

    def pack(self: saving.Saver, t: Tensor) -> Any:
        found = real(self, t)
        if isinstance(found, (Whole, Mask)):
            held[found.kept.untyped_storage()._cdata] = found.kept
        return found

    with monkeypatch.context() as patch:
        patch.setattr(saving.Saver, "pack", pack)
        result = run()
    del result
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    return sum(t.untyped_storage().nbytes() for place, t in held.items() if place not in own)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "vit", "t5"])
def test_gradients_are_those_of_keeping_all(name: str, training: bool) -> None:
    backbone, model, at = put(name)
    model.train(training)
    at.activations = "all"
    wanted = gradients(backbone, model, at)
    for level in ("less", "least"):
        at.activations = level
        for one, other in zip(gradients(backbone, model, at), wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("auto", [False, True])
def test_gradients_in_half_precision(auto: bool) -> None:
    backbone, model, at = put("llama", dtype=torch.float32 if auto else torch.bfloat16)
    found = {}
    for level in saving.LEVELS:
        at.activations = level
        with torch.autocast("cpu", torch.bfloat16, enabled=auto):
            y = backbone.logits(backbone.run(model))
        found[level] = torch.autograd.grad(y.float().square().sum(), at.parameters())
    for level in ("less", "least"):
        for one, other in zip(found[level], found["all"], strict=True):
            assert (one - other).norm() <= 1e-2 * other.norm()


def bert(training: bool) -> tuple[nn.Module, Any, dict[str, Tensor]]:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=50, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192),
                      add_pooling_layer=False).train(training)
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="attn.?|mlp.*"), activations="less")
    return model, at, {"input_ids": torch.randint(50, (4, 16)), "attention_mask": torch.ones(4, 16, dtype=torch.long)}


@pytest.mark.parametrize(("training", "less", "least"), [(False, 0.66, 0.3), (True, 0.58, 0.4)])
def test_bytes_of_a_bert(training: bool, less: float, least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, at, batch = bert(training)

    def run() -> Any:
        return model(**batch)

    whole = measure(model, run)  # somebody else's hooks decide what is kept: all of it
    bound = {"less": less, "least": least}
    for level, share in bound.items():
        at.activations = level
        assert kept(monkeypatch, run, model) < share * whole


class Toy(nn.Module):
    """Keeps the input of a GELU, and would keep its output; ``between`` happens before that is read."""

    def __init__(self, between: Callable[[Tensor], Any] = lambda t: None, after: Callable[[Tensor], Any] = lambda t: None) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8, dtype=torch.float64), nn.Linear(8, 8, dtype=torch.float64)
        self.between, self.after = between, after

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.one(x))
        with torch.no_grad():
            self.between(h)
        y: Tensor = self.two(h)
        with torch.no_grad():
            self.after(h)
        return y


def toy(**keywords: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = Toy(**keywords)
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="one|two"), activations="less", check=False)
    with torch.no_grad():
        for p in at.parameters():
            p.copy_(torch.randn_like(p))
    return model, at


def test_what_was_changed_in_place_before_it_is_kept_is_kept_as_it_is() -> None:
    model, at = toy(between=lambda h: h.mul_(3))
    x = torch.randn(5, 8, dtype=torch.float64)
    found = torch.autograd.grad(model(x).square().sum(), at.parameters())
    at.activations = "all"
    for one, other in zip(found, torch.autograd.grad(model(x).square().sum(), at.parameters()), strict=True):
        torch.testing.assert_close(one, other)


def test_what_was_changed_in_place_after_it_was_kept_is_an_error_as_in_torch() -> None:
    class Late(Toy):
        def forward(self, x: Tensor) -> Tensor:
            h = self.one(x)
            y: Tensor = self.two(F.gelu(h))
            h.detach().mul_(2)
            return y

    torch.manual_seed(0)
    model = Late()
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="one|two"), check=False)
    for level in ("all", "less"):  # the least does not keep it
        at.activations = level
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            model(torch.randn(5, 8, dtype=torch.float64)).sum().backward()


def test_vmap_in_a_model() -> None:
    rows = torch.randn(4, 5, 8, dtype=torch.float64)

    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = torch.vmap(lambda row: F.gelu(self.inner(row)) * 2)(x)
            return y

    mapped = Mapped()
    at = thrifty.attach(mapped, thrifty.LoRA(rank=2, where="inner"), check=False)
    found = []
    for level in saving.LEVELS:
        at.activations = level
        found.append(torch.autograd.grad(mapped(rows).square().sum(), at.parameters()))
    for level in found[1:]:
        for one, other in zip(level, found[0], strict=True):
            torch.testing.assert_close(one, other)


def test_a_gradient_inside_of_the_forward_pass_is_found_or_refused() -> None:
    class Sloped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(8, 8, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return torch.func.grad(lambda row: F.gelu(self.one(row)).square().sum())(x)

    model = Sloped()
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="one"), check=False)
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(F.gelu(model.one(x)).square().sum(), x)
    torch.testing.assert_close(model(x), wanted)
    at.activations = "less"
    with pytest.raises(RuntimeError, match="saved tensor hooks") as raised:
        model(x)
    assert "activations" in raised.value.__notes__[0]


def test_twice_through_one_graph_and_a_gradient_of_a_gradient() -> None:
    model, at = toy()
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    results = []
    for level in saving.LEVELS:
        at.activations = level
        y = model(x).square().sum()
        first = torch.autograd.grad(y, at.parameters(), retain_graph=True)
        (dx,) = torch.autograd.grad(y, x, create_graph=True)
        results.append([*first, *torch.autograd.grad(dx.square().sum(), at.parameters())])
    for found in results[1:]:
        for one, other in zip(found, results[0], strict=True):
            torch.testing.assert_close(one, other)


def test_dropout_on_the_cpu_draws_and_answers_as_torch_does() -> None:
    q, k, v = (torch.randn(2, 7, 3, 4).transpose(1, 2).requires_grad_(True) for _ in range(3))
    blocked = torch.rand(2, 1, 7, 7) < 0.3
    added = torch.zeros(2, 1, 7, 7).masked_fill(blocked, -1e4)
    for mask, causal in ((None, False), (None, True), (~blocked, False), (added, False)):
        results = []
        for active in (False, True):
            torch.manual_seed(4)
            saver = saving.Saver(nn.Identity(), False)
            if active:
                saver.open()
            y = F.dropout(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.3, is_causal=causal), 0.2)
            saver.close()
            results.append([y, *torch.autograd.grad(y.square().sum(), (q, k, v)), torch.rand(2)])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)


def test_others_who_decide_what_is_kept_go_on_deciding() -> None:
    model, at = toy()
    x = torch.randn(5, 8, dtype=torch.float64)
    wanted = torch.autograd.grad(model(x).square().sum(), at.parameters())
    with torch.autograd.graph.save_on_cpu():
        offloaded = model(x)
        assert saving._now.saver is None
    y = checkpoint(model, x, use_reentrant=False)
    for out in (offloaded, y):
        for one, other in zip(torch.autograd.grad(out.square().sum(), at.parameters()), wanted, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("training", [False, True])
def test_checkpointed_blocks(training: bool) -> None:
    model, at, batch = bert(training)
    results = []
    for blocks in (False, True):
        if blocks:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        for level in saving.LEVELS:
            at.activations = level
            torch.manual_seed(2)
            loss = model.train(training)(**batch).last_hidden_state.square().mean()
            results.append(torch.autograd.grad(loss, at.parameters()))
    for found in results[1:]:
        for one, other in zip(found, results[0], strict=True):
            torch.testing.assert_close(one, other)


def test_blocks_that_are_compiled_on_their_own_are_compiled_once() -> None:
    model, at, batch = bert(False)

    def found() -> Any:
        return torch.autograd.grad(model(**batch).last_hidden_state.square().mean(), at.parameters())

    wanted = found()
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    for block in model.encoder.layer:
        block.forward = torch.compile(block.forward, backend=counter, fullgraph=True)
    for _ in range(3):
        for one, other in zip(found(), wanted, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    assert counter.frame_count == len(model.encoder.layer)
    torch._dynamo.reset()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_pass_that_fails_leaves_nothing_that_the_next_one_does_not_clear(error: type[BaseException]) -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.fail = nn.Linear(3, 3), True

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.one(x)
            if self.fail:
                raise error
            return y

    model = Failing()
    thrifty.attach(model, thrifty.LoRA(rank=1, where="one"), activations="less", check=False)
    with pytest.raises(error):
        model(torch.ones(2, 3))
    assert error is KeyboardInterrupt or not _get_current_function_mode_stack()
    model.fail = False
    model(torch.ones(2, 3)).sum().backward()  # and the fixture looks whether anything is left


def test_a_mode_that_ends_later_goes_on() -> None:
    class Other(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    saver, mode = saving.Saver(nn.Identity(), False), Other()
    saver.open()
    mode.__enter__()
    saver.close()
    assert _get_current_function_mode_stack() == [mode]
    mode.__exit__(None, None, None)


def test_levels_by_name_and_gone_with_the_attachment() -> None:
    model, at = toy()
    assert at.activations == "less"
    model = nn.Sequential(nn.Linear(2, 2))
    at = thrifty.attach(model, thrifty.LoRA(where="0"))
    assert at.activations == "all" and not model._forward_pre_hooks and not model._forward_hooks
    at.activations = "less"
    assert model._forward_pre_hooks and model._forward_hooks
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(toy_of_linears()))):
        thrifty.attachments(other)["default"].activations = "all"
        assert not other._forward_pre_hooks
    at.activations = "all"
    assert not model._forward_pre_hooks and not model._forward_hooks
    with pytest.raises(NoSuchSetting, match="least"):
        at.activations = "lest"
    with pytest.raises(NoSuchSetting):
        thrifty.attach(nn.Sequential(nn.Linear(2, 2)), thrifty.LoRA(where="0"), activations="none")
    at.activations = "least"
    at.detach()
    assert not model._forward_pre_hooks and not model._forward_hooks


def toy_of_linears() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    thrifty.attach(model, thrifty.LoRA(rank=1, where="0"), activations="less")
    return model

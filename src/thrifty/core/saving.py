"""Saving: what training keeps between the forward and the backward pass, and what it computes again instead.

autograd keeps what each operation needs on its own. So it keeps the input of a GELU and its output too, which the next layer
reads; the input of a normalisation and its output; the mask of a dropout in four bytes a number. While a ``Saver`` is active, a
tensor that one cheap operation makes of others that are kept anyway is held as how to make it. The operations of the forward
pass are those that would have run, and what is computed again is the same operation on the same numbers, so that no gradient
moves.
"""
from __future__ import annotations

import math
import sys
import threading
import weakref
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils.hooks import RemovableHandle

from .rebuilding import Held, Mask, Recipe, View, Whole, is_plain, regular

LEVELS = ("all", "less", "least")
WORTH = 1 << 12  # numbers: what is smaller is kept
SMALL = 16  # a tensor this many times smaller than what is made of it is copied rather than asked whether it is kept
_now = threading.local()
_autograd: Any = torch._C._autograd


class Saver(TorchFunctionMode):
    """Active during one forward pass of ``model``, in one thread. ``products``: matrix products may be computed again too."""

    def __init__(self, model: nn.Module, products: bool) -> None:
        super().__init__()
        self.model, self.products, self.closed = weakref.ref(model), products, False
        self.made: dict[int, tuple[weakref.ref[Tensor], int, Recipe]] = {}  # memory -> what lies there, its version, how to make it
        self.kept: weakref.WeakValueDictionary[int, Whole] = weakref.WeakValueDictionary()  # memory -> who keeps it anyway
        self.rate, self.mask = 0.0, cast("Held | None", None)  # of the dropout that is running
        self.hooks = saved_tensors_hooks(self.pack, unpack)

    def open(self) -> None:
        """Begin."""
        self.hooks.__enter__()
        self.__enter__()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """End, and forget. Modes that were entered after this one and have not ended yet go on."""
        self.closed = True
        modes = _get_current_function_mode_stack()
        if any(mode is self for mode in modes):
            above = []
            while (mode := _pop_mode()) is not self:
                above.append(mode)
            for mode in reversed(above):
                _push_mode(mode)
        if self.on_top():
            self.hooks.__exit__()
        self.made.clear()
        self.kept.clear()

    def on_top(self) -> bool:
        """Whether what autograd keeps now comes here, and not to somebody who computes all of it again (checkpointing)."""
        top = _autograd._top_saved_tensors_default_hooks(True)
        return top is not None and top[0] == self.pack

    def pack(self, t: Tensor) -> Held | Tensor:
        """What to hold in the place of ``t``, which autograd is about to keep."""
        if self.closed or not regular(t):
            return t
        if (recipe := self.recipe(t)) is not None:
            return View(recipe, t)
        if self.rate and self.mask is None and t.is_floating_point() and not t.requires_grad:
            self.mask = Mask(t, self.rate)
            return self.mask
        held = self.kept[t.untyped_storage()._cdata] = Whole(t)
        if self.rate and self.mask is None and t.dtype == torch.bool:
            self.mask = held
        return held

    def recipe(self, t: Tensor) -> Recipe | None:
        """How the memory in which ``t`` lies can be made again, if it is still what was made there."""
        place = t.untyped_storage()._cdata
        made, version, recipe = self.made.get(place, (_nobody, 0, None))
        y = made()
        if y is None or y._version != version or y.dtype != t.dtype or y.untyped_storage()._cdata != place:
            return None
        return recipe

    def hold(self, t: Tensor, room: int) -> Held | None:
        """How to hold an argument of what made ``room`` numbers without keeping more than is kept anyway; None: there is no way."""
        if (recipe := self.recipe(t)) is not None:
            return View(recipe, t)
        if t.numel() * SMALL <= room:  # a copy: where weights are spread over processes the original may be gone by then
            return Whole(t.detach().clone())
        return Whole(t) if not isinstance(t, nn.Parameter) and t.untyped_storage()._cdata in self.kept else None

    def note(self, y: Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], product: bool = False) -> None:
        """Remember that ``y`` is ``func`` of these, if it need not be kept for that."""
        if (not regular(y) or not y.requires_grad or y.numel() < WORTH or y.untyped_storage()._cdata in self.kept
                or y.untyped_storage().nbytes() != y.nbytes):
            return
        held: list[Any] = []
        for a in (*args, *kwargs.values()):
            if isinstance(a, Tensor):
                if not regular(a) or a.device != y.device or a.untyped_storage()._cdata == y.untyped_storage()._cdata:
                    return
                weight = product and isinstance(a, nn.Parameter) and a.untyped_storage().nbytes() == a.nbytes
                a = Whole(a) if weight else self.hold(a, y.numel())
                if a is None or product and isinstance(a, View) and a.recipe.multiplies:
                    return  # each product is computed again at most once
            held.append(a)
        multiplies = product or any(isinstance(a, View) and a.recipe.multiplies for a in held)
        recipe = Recipe(func, tuple(held[: len(args)]), dict(zip(kwargs, held[len(args) :], strict=True)), y, multiplies)
        place = y.untyped_storage()._cdata
        self.made[place] = weakref.ref(y, lambda gone: self._forget(place, gone)), y._version, recipe

    def _forget(self, place: int, gone: weakref.ref[Tensor]) -> None:
        if place in self.made and self.made[place][0] is gone:
            del self.made[place]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (self.closed or torch.compiler.is_compiling() or not torch.is_grad_enabled()
                or torch._C._are_functorch_transforms_active()):  # under vmap tensors have no memory of their own
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self.attend(*args, **kwargs)
        if func is F.dropout:
            return self.drop(*args, **kwargs)
        y = func(*args, **kwargs)
        if func in CHEAP or func in SCALED and not all(isinstance(a, Tensor) for a in args):
            self.note(y, func, args, kwargs)
        elif self.products and func is F.linear:
            self.note(y, func, args, kwargs, product=True)
        return y

    def drop(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """F.dropout, whose mask is held in a byte a number."""
        if not training or inplace or not 0 < p < 1 or not regular(input) or not input.requires_grad:
            return F.dropout(input, p, training, inplace)
        self.rate, self.mask = p, None
        try:
            y = F.dropout(input, p)
        finally:
            mask, self.rate, self.mask = self.mask, 0.0, None
        if mask is not None and (held := self.hold(input, 0)) is not None:
            self.note(y, partial(_dropped, p=p), (held, mask), {})
        return y

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
               is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False) -> Tensor:
        """scaled_dot_product_attention. With dropout on the CPU torch composes it of these steps, out of sight of a mode."""
        visible = dropout_p and query.device.type == "cpu" and not enable_gqa and (scale is None or scale > 0)
        if (not visible or not all(regular(t) and t.dtype in (torch.float32, torch.float64) for t in (query, key, value))
                or torch.is_autocast_enabled("cpu") or not self.on_top()):
            return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale,
                                                  enable_gqa=enable_gqa)
        root = math.sqrt(query.shape[-1] ** -0.5 if scale is None else scale)
        query, key = (self._call(Tensor.contiguous, self._call(torch.mul, t, root)) for t in (query, key))  # as matmul would
        logits = query @ key.transpose(-2, -1)
        if is_causal:
            attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -math.inf)
        if attn_mask is not None:
            logits.add_(attn_mask)
        return self.drop(torch._safe_softmax(logits, -1), dropout_p) @ self._call(Tensor.contiguous, value)

    def _call(self, func: Any, *args: Any) -> Tensor:
        return self.__torch_function__(func, (), args)


def unpack(held: Held | Tensor) -> Tensor:
    """What ``Saver.pack`` was given."""
    return held if isinstance(held, Tensor) else held.tensor()


def active() -> Saver | None:
    """The saver of the forward pass that is running in this thread, if it may compute products again."""
    saver: Saver | None = getattr(_now, "saver", None)
    return saver if saver is not None and saver.products and not saver.closed else None


def listen(model: nn.Module, level: str) -> list[RemovableHandle]:
    """Hook ``model`` so that each of its forward passes that builds a graph has a saver, unless ``level`` is "all"."""
    if level == "all":
        return []
    return [model.register_forward_pre_hook(partial(_begin, products=level == "least")),
            model.register_forward_hook(_end, always_call=True)]


def _begin(model: nn.Module, args: Any, products: bool) -> None:
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or torch._C._get_tracing_state():
        return
    before: Saver | None = getattr(_now, "saver", None)
    if before is not None and before.model() in (model, None):  # what an interrupted pass left
        before.close()
        before = _now.saver = None
    if (before is not None or not _autograd._saved_tensors_hooks_is_enabled()  # torch.func
            or _autograd._top_saved_tensors_default_hooks(True) is not None):  # somebody else decides what is kept
        return
    sharded = products and not all(map(is_plain, model.parameters()))
    _now.saver = Saver(model, products and not sharded)
    _now.saver.open()


def _end(model: nn.Module, args: Any, out: Any) -> None:
    if torch.compiler.is_compiling():
        return
    saver: Saver | None = getattr(_now, "saver", None)
    if saver is not None and saver.model() is model:
        saver.close()
        _now.saver = None
        if isinstance(error := sys.exception(), RuntimeError) and "saved tensor hooks" in str(error):
            error.add_note("what this model's forward passes keep is chosen by such hooks, unless its attachments' `activations` "
                           "are \"all\"")


def _dropped(x: Tensor, mask: Tensor, p: float) -> Tensor:
    return x * mask if mask.is_floating_point() else x * mask * (1 / (1 - p))


def _nobody() -> None:
    return None


CHEAP = {
    F.gelu, F.silu, F.mish, F.softplus, F.hardswish, F.leaky_relu, F.layer_norm, F.group_norm, F.rms_norm, torch.layer_norm,
    torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__,
    Tensor.to, Tensor.type_as, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16,
    Tensor.contiguous, Tensor.reshape, Tensor.clone, torch.clone}
SCALED = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, torch.div, Tensor.div, Tensor.__truediv__}  # only with a number

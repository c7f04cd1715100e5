"""Fusing: a frozen linear layer and the thin products beside it as one operation.

    y = x W^T + b + sum_i s_i (h A_i^T) B_i^T        W [dout, din] frozen, A_i [rank, din], B_i [columns, rank]

h is x, or x after a dropout. Composed, each product makes two or three more tensors of y's size, and x's gradient comes in two
halves that are added. Here products are added to y where it lies, the gradient of x is accumulated in one tensor, and what is kept
is h, once, and h A^T [..., rank]; not even h where the A are frozen.
"""
from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import Function
from torch.nn.modules import module as modules

from . import saving, weight
from .opening import Rows
from .rebuilding import regular

if TYPE_CHECKING:
    from .edit import Edit, Product

FORWARDS = (nn.Linear.forward, Rows.forward)
Span = tuple[int, int, float]  # the columns of y that a product is for, and its scale


def fuse(module: nn.Module, edits: Sequence[Edit], y: Tensor, x: Tensor) -> Tensor | None:
    """What ``module`` answered to x and all that ``edits`` add to it; None where that is not a sum of thin products.

    y is changed in place: it is the fresh output of a linear layer, which nobody else has seen. Nothing is drawn before it is
    certain that the answer is not None.
    """
    if not (_ordinary() and _linear(module) and all(map(_unwatched, edits))):
        return None
    stored: Any = module.weight
    if stored.requires_grad or not _own(stored) or not (regular(y) and regular(x)) or not y.is_contiguous():
        return None
    products = _alike([edit.product() for edit in edits])
    if not products:
        return None
    dense, bias, width, drop = weight.read(module, ""), module.bias, y.shape[-1], products[0].drop
    h = None if drop is None else drop(x.to(products[0].A.dtype))
    spans = tuple((e.part.lo, e.part.hi, p.scale) if e.part else (0, width, p.scale) for e, p in zip(edits, products, strict=True))
    given = (x, h, dense, bias, spans, *(t for p in products for t in (p.A, p.B)))
    out: Tensor = Products.apply(y.detach(), *given)  # type: ignore[no-untyped-call]
    if (saver := saving.active()) is not None:
        saver.note(out, _again, given, {}, product=True)
    return out


class Products(Function):
    """The sum above, and its gradients. Nothing in here is autocast: tensors say in which precision they multiply."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, h: Tensor | None, weight: Tensor, bias: Tensor | None, spans: tuple[Span, ...],
                *factors: Tensor) -> Tensor:
        """y + sum_i s_i (h A_i^T) B_i^T, where y = x W^T + b; h is x where it is None."""
        ctx.mark_dirty(y)
        read = x if h is None else h
        low = _add(y, read, spans, factors)
        needs = ctx.needs_input_grad
        ctx.save_for_backward(read if any(needs[6::2]) else None, low if any(needs[7::2]) else None, weight if needs[1] else None,
                              *factors)
        ctx.spans, ctx.kind, ctx.x, ctx.h = spans, low.dtype, (x.shape, x.dtype), None if h is None else (h.shape, h.dtype)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """Gradients of x, h, b, and of each A and B. What is multiplied is two-dimensional: [tokens, width]."""
        read, low, weight, *factors = ctx.saved_tensors
        needs, kind, As, Bs = ctx.needs_input_grad, ctx.kind, factors[0::2], factors[1::2]
        with _uncast(dy):
            dy = dy.reshape(-1, dy.shape[-1])
            d, A = dy.to(kind), _stack(As).to(kind)
            seen = None if read is None else read.reshape(-1, A.shape[1]).to(kind)
            if torch.is_grad_enabled() and low is not None:
                low = _low_again(low, seen, A, needs)
            dlow = _stack([(B.to(kind).t() @ d[:, lo:hi].t()).t() * s for (lo, hi, s), B in zip(ctx.spans, Bs, strict=True)], 1)
            dx = dy @ weight.to(dy.dtype) if needs[1] else None
            dh = None
            if ctx.h is not None:
                dh = (dlow @ A).view(ctx.h[0]).to(ctx.h[1]) if needs[2] else None
            elif dx is not None:
                dx = dx.addmm_(dlow, A) if dx.dtype == kind else dx.add_((dlow @ A).to(dx.dtype))
            dx = None if dx is None else dx.view(ctx.x[0]).to(ctx.x[1])
            grads = _of_factors(d, dlow, seen, low, ctx.spans, factors, needs[6:])
            return None, dx, dh, None, dy.sum(0) if needs[4] else None, None, *grads


def _of_factors(d: Tensor, dlow: Tensor, seen: Tensor | None, low: Tensor | None, spans: tuple[Span, ...],
                factors: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of A and B in turn, of those that ``needs`` wants: dlow^T h, and s d^T (h A^T).

    Products are written so that the thin matrix comes first: the other way round a CPU takes up to fifteen times as long.
    """
    ranks = [len(A) for A in factors[0::2]]
    dAs = (dlow.t() @ seen).split(ranks) if seen is not None else [None] * len(ranks)
    lows = low.split(ranks, 1) if low is not None else [None] * len(ranks)
    found: list[Tensor | None] = []
    for i, ((lo, hi, s), dA, own) in enumerate(zip(spans, dAs, lows, strict=True)):
        A, B = factors[2 * i], factors[2 * i + 1]
        found.append(dA.to(A.dtype) if needs[2 * i] and dA is not None else None)
        found.append(((own.t() @ d[:, lo:hi]).t() * s).to(B.dtype) if needs[2 * i + 1] and own is not None else None)
    return found


def _low_again(low: Tensor, seen: Tensor | None, A: Tensor, needs: Sequence[bool]) -> Tensor:
    """h A^T as a function of h and A, because somebody differentiates twice.

    Raises:
        RuntimeError: h was not kept, as A is frozen, and it is not a constant.
    """
    if seen is not None:
        return (A @ seen.t()).t()
    if needs[1] or needs[2]:
        raise RuntimeError("a linear layer and the product with a frozen A beside it cannot be differentiated twice")
    return low


def _add(y: Tensor, h: Tensor, spans: tuple[Span, ...], factors: Sequence[Tensor]) -> Tensor:
    """Add the products to y where it lies, and return h A^T [tokens, all ranks]; in autocast's precision, else in that of A."""
    As, Bs = factors[0::2], factors[1::2]
    kind = y.dtype if torch.is_autocast_enabled(y.device.type) else As[0].dtype
    with _uncast(y):
        low = (_stack(As).to(kind) @ h.reshape(-1, h.shape[-1]).to(kind).t()).t()
        flat = y.view(-1, y.shape[-1])
        for (lo, hi, s), B, own in zip(spans, Bs, low.split([len(A) for A in As], 1), strict=True):
            if flat.dtype == kind:
                flat[:, lo:hi].addmm_(own, B.to(kind).t(), alpha=s)
            else:
                flat[:, lo:hi].add_((own @ B.to(kind).t() * s).to(flat.dtype))
    return low


def _again(x: Tensor, h: Tensor | None, weight: Tensor, bias: Tensor | None, spans: tuple[Span, ...], *factors: Tensor) -> Tensor:
    """All of y, from the beginning."""
    y = F.linear(x, weight, bias)
    _add(y, x if h is None else h, spans, factors)
    return y


def _stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def _uncast(t: Tensor) -> contextlib.AbstractContextManager[Any]:
    kind = t.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


def _ordinary() -> bool:
    """Whether nobody compiles, traces, transforms or listens to whatever runs."""
    return not (torch.compiler.is_compiling() or torch._C._get_tracing_state() or torch._C._are_functorch_transforms_active()
                or forward_ad._current_level >= 0 or modules._has_any_global_hook())


def _linear(module: Any) -> bool:
    """Whether all that was done to the input is a linear layer's own work, and only the edits' hook sees what comes out."""
    kind = type(module)
    plain = kind.forward in FORWARDS or hasattr(module, "nf") and kind.__module__ == "transformers.pytorch_utils"
    return plain and "forward" not in module.__dict__ and len(module._forward_hooks) == 1


def _own(stored: Any) -> bool:
    """Whether the weight is a parameter or a view of one, and not computed anew for whoever asks (parametrisations)."""
    return regular(stored) and isinstance(stored if stored._base is None else stored._base, nn.Parameter)


def _unwatched(edit: Edit) -> bool:
    """Whether nobody waits for the edit to be called, and it is for columns that lie side by side."""
    hooks = edit._forward_hooks or edit._forward_pre_hooks or edit._backward_hooks or edit._backward_pre_hooks
    return not hooks and "forward" not in edit.__dict__ and (edit.part is None or edit.part.groups == 1)


def _alike(offered: list[Product | None]) -> list[Product]:
    """What is offered, if all are products of one precision and of the same h: x, or for a single one x with its own dropout."""
    found = [p for p in offered if p is not None and regular(p.A) and regular(p.B)]
    kinds = {t.dtype for p in found for t in (p.A, p.B)}
    alike = len(found) == len(offered) and len(kinds) == 1 and (len(found) == 1 or all(p.drop is None for p in found))
    return found if alike else []

"""Fusing: a frozen linear layer and the thin products beside it as one operation.

    y = x W^T + b + sum_i s_i (h A_i^T) B_i^T        W [dout, din] frozen, A_i [rank, din], B_i [rows, rank]

Composed, each product makes two or three more tensors of y's size, and x's gradient comes in two halves that are added. Here
products are added to y where it lies, the gradient of x is accumulated in one tensor, and what is kept is x, once, and
h A^T [..., rank]; not even x where the A are frozen.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
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

    y is changed in place: it is the fresh output of a linear layer, which nobody else has seen.
    """
    if torch.compiler.is_compiling() or not _linear(module) or any(_watched(edit) for edit in edits):
        return None
    products = _products(edits, x)
    if not products or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return None
    stored, h, bias, width = module.weight, products[0].h, module.bias, y.shape[-1]
    if not (regular(y) and regular(x) and regular(stored)) or stored.requires_grad or not y.is_contiguous():
        return None
    dense = weight.read(module, "")
    spans = tuple((e.part.lo, e.part.hi, p.scale) if e.part else (0, width, p.scale) for e, p in zip(edits, products, strict=True))
    factors = [t for p in products for t in (p.A, p.B)]
    given = (x, None if h is x else h, dense, bias, spans, *factors)
    out: Tensor = Products.apply(y.detach(), *given)  # type: ignore[no-untyped-call]
    if (saver := saving.active()) is not None:
        saver.note(out, _again, given, {}, product=True)
    return out


class Products(Function):
    """The sum above, and its gradients."""

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
    def backward(ctx: Any, dy: Tensor) -> Any:  # type: ignore[override]
        """Gradients of x, h, b, and of each A and B. What is multiplied is two-dimensional: [tokens, width]."""
        read, low, weight, *factors = ctx.saved_tensors
        needs, kind = ctx.needs_input_grad, ctx.kind
        dy = dy.reshape(-1, dy.shape[-1])
        A, d = torch.cat(factors[0::2]).to(kind) if len(factors) > 2 else factors[0].to(kind), dy.to(kind)
        seen = None if read is None else read.reshape(-1, A.shape[1]).to(kind)
        if torch.is_grad_enabled() and any(needs[7::2]):  # somebody differentiates twice: low must be a function of x and A
            if seen is None:
                raise RuntimeError("a linear layer and the product with a frozen A beside it cannot be differentiated twice")
            low = seen @ A.t()
        ranks = [len(a) for a in factors[0::2]]
        dlow = [(d[:, lo:hi] @ B.to(kind)) * s for (lo, hi, s), B in zip(ctx.spans, factors[1::2], strict=True)]
        dall = torch.cat(dlow, 1) if len(dlow) > 1 else dlow[0]
        dx = dy @ weight.to(dy.dtype) if needs[1] else None
        dh = None
        if ctx.h is not None:
            dh = (dall @ A).view(ctx.h[0]).to(ctx.h[1]) if needs[2] else None
        elif dx is not None:
            dx = dx.addmm_(dall, A) if dx.dtype == kind else dx.add_((dall @ A).to(dx.dtype))
        dx = None if dx is None else dx.view(ctx.x[0]).to(ctx.x[1])
        dA = (dall.t() @ seen).split(ranks) if any(needs[6::2]) else [None] * len(ranks)
        lows = low.split(ranks, 1) if any(needs[7::2]) else [None] * len(ranks)
        grads: list[Tensor | None] = []
        for i, (lo, hi, s) in enumerate(ctx.spans):
            a, b = factors[2 * i], factors[2 * i + 1]
            grads.append(dA[i].to(a.dtype) if needs[6 + 2 * i] else None)
            grads.append((d[:, lo:hi].t() @ lows[i] * s).to(b.dtype) if needs[7 + 2 * i] else None)
        return None, dx, dh, None, dy.sum(0) if needs[4] else None, None, *grads


def _add(y: Tensor, h: Tensor, spans: tuple[Span, ...], factors: Sequence[Tensor]) -> Tensor:
    """Add the products to y where it lies, and return h A^T [tokens, all ranks]; in autocast's precision, else in that of A."""
    A, Bs = factors[0::2], factors[1::2]
    kind = y.dtype if torch.is_autocast_enabled(y.device.type) else A[0].dtype
    down = torch.cat(list(A)) if len(A) > 1 else A[0]
    low = h.reshape(-1, h.shape[-1]).to(kind) @ down.to(kind).t()
    flat = y.view(-1, y.shape[-1])
    for (lo, hi, s), B, own in zip(spans, Bs, low.split([len(a) for a in A], 1), strict=True):
        if flat.dtype == kind:
            flat[:, lo:hi].addmm_(own, B.to(kind).t(), alpha=s)
        else:
            flat[:, lo:hi].add_((own @ B.to(kind).t() * s).to(flat.dtype))
    return low


def _again(x: Tensor, h: Tensor | None, weight: Tensor, bias: Tensor | None, spans: tuple[Span, ...], *factors: Tensor) -> Tensor:
    y = torch.nn.functional.linear(x, weight, bias)
    _add(y, x if h is None else h, spans, factors)
    return y


def _products(edits: Sequence[Edit], x: Tensor) -> list[Product]:
    """What the edits add, if all of them add products of one precision, of one tensor."""
    found: list[Product] = []
    for edit in edits:
        product = edit.product(x)
        if product is None or not all(regular(t) for t in product[:3]):
            return []
        found.append(product)
    alike = all(p.h is found[0].h and p.A.dtype == p.B.dtype == found[0].A.dtype for p in found)
    return found if alike else []


def _linear(module: Any) -> bool:
    """Whether all that was done to the input is a linear layer's own work, and only the edits' hook sees what comes out."""
    kind = type(module)
    plain = kind.forward in FORWARDS or hasattr(module, "nf") and kind.__module__ == "transformers.pytorch_utils"
    return plain and "forward" not in module.__dict__ and len(module._forward_hooks) == 1 and not modules._global_forward_hooks


def _watched(edit: Edit) -> bool:
    """Whether somebody waits for the edit to be called, or it is for columns that do not lie side by side."""
    return bool(edit._forward_hooks or edit._forward_pre_hooks) or edit.part is not None and edit.part.groups > 1

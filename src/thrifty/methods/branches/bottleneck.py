"""The bottleneck that every adapter is made of: A(h) = s (act(h W_d + b_d) W_u + b_u), with W_d [d, m] and W_u [m, d].

Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019, arXiv:1902.00751.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core import Branch, Edit, Site, register
from ...core.drawing import truncated_normal_
from ...core.errors import DeadEdit, Unfit


def _gelu_tanh(t: Tensor) -> Tensor:
    return F.gelu(t, approximate="tanh")


def _identity(t: Tensor) -> Tensor:
    return t


ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "gelu": F.gelu, "gelu_tanh": _gelu_tanh, "swish": F.silu, "tanh": torch.tanh, "identity": _identity}


class Projections(Branch):
    """The projections ``down`` [d -> m] and ``up`` [m -> out] and what lies between. Biases start at zero.

    ``init``: "normal" and "truncated" (at two deviations) draw both weights with deviation ``std``; "zero" draws W_d as
    nn.Linear does and sets W_u to zero, so that the branch starts as nothing. ``norm`` puts a new LayerNorm, which trains
    too, in front. ``learned`` lets s train, from ``scale`` on. ``out`` is the site's output width unless told.
    """

    def __init__(self, site: Site, rank: int, width: int, act: str, init: str, std: float, scale: float = 1.0,
                 dropout: float = 0.0, norm: bool = False, bias: bool = True, learned: bool = False, out: int = 0):
        super().__init__(site)
        self.norm = nn.LayerNorm(width) if norm else None
        self.down, self.up = nn.Linear(width, rank, bias), nn.Linear(rank, out or site.dout, bias)
        self.act, self.dropout = ACTS[act], nn.Dropout(dropout)
        self.scale = nn.Parameter(torch.full((1,), scale)) if learned else scale
        for layer in (self.down, self.up):
            if bias:
                nn.init.zeros_(layer.bias)
            if init == "normal":
                nn.init.normal_(layer.weight, std=std)
            elif init == "truncated":
                truncated_normal_(layer.weight, std, 2 * std)
        if init == "zero":
            nn.init.zeros_(self.up.weight)

    def branch(self, h: Tensor) -> Tensor:
        """A(h): h [..., d] -> [..., out], in the precision of the parameters."""
        h = h.to(self.up.weight.dtype)
        h = h if self.norm is None else self.norm(h)
        return self.scale * self.up(self.dropout(self.act(self.down(h))))

    def by_row(self, own: dict[str, Tensor], *given: Tensor) -> Any:
        """A_i(h_i) for each row i: two batched products."""
        if self.norm is not None or "scale" in own or not isinstance(self.up, nn.Linear):
            return super().by_row(own, *given)
        h = given[0].to(self.up.weight.dtype)
        inner = self.dropout(self.act(_each(h.reshape(len(h), -1, h.shape[-1]), own, "down")))
        return self.scale * _each(inner, own, "up").view(*h.shape[:-1], -1)


def _each(x: Tensor, own: dict[str, Tensor], name: str) -> Tensor:
    """A linear layer whose weight, and bias if there is one, is that of the row: x [B, n, d] -> [B, n, m]."""
    weight, bias = own[f"{name}.weight"].transpose(1, 2), own.get(f"{name}.bias")
    return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias[:, None], x, weight)


def refuse_maps(site: Site, t: Tensor, width: int) -> None:
    """Refuse a block that gives out images with their channels first, [batch, channels, ...].

    Raises:
        Unfit: the last axis of ``t``, which the block gave out, is not that of its ``width`` features.
    """
    if site.role == "block" and (t.shape[-1] != width or t.dim() > 3 and t.shape[1] == width):
        raise Unfit(f"the block {site.path!r} ({type(site.module).__name__}) gives out {list(t.shape)}: its {width} features are "
                    "not the last axis, as in [batch, tokens, features]")


@register("bottleneck")
class Bottleneck(Projections):
    """y + A(y): the adapter reads what the site gives out, and keeps it."""

    rowwise = True

    def __init__(self, site: Site, rank: int, act: str, init: str, std: float, scale: float = 1.0, dropout: float = 0.0,
                 norm: bool = False, bias: bool = True):
        super().__init__(site, rank, site.dout, act, init, std, scale, dropout, norm, bias)

    def read(self, y: Tensor, x: Tensor) -> Tensor:
        """y [..., d].

        Raises:
            Unfit: the site is a block whose features are not the last axis of what it gives out.
        """
        refuse_maps(self.site, y, self.up.out_features)
        return y


@register("bottleneck-before-norm")
class BeforeNorm(Projections):
    """LN(u + A(LN(u))) at a post-norm: the adapter reads the normalised sum u and adds to the sum; LN is used twice."""

    kept = "after.mlp"
    rowwise = True

    def __init__(self, site: Site, rank: int, act: str, init: str, std: float, scale: float = 1.0, dropout: float = 0.0):
        super().__init__(site, rank, site.dout, act, init, std, scale, dropout)

    def write(self, y: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """LN(x + z), where y = LN(x) [..., d]."""
        # forward() and not a call: a call would run the hooks, and with them this edit, again
        again: Tensor = self.site.module.forward(x + z.to(x.dtype))
        return again


@register("tap")
class Tap(Edit):
    """Changes nothing: leaves the site's input under ``key`` for an edit further on in the same forward pass."""

    port = "input"
    passive = True

    def __init__(self, site: Site, key: str):
        super().__init__(site)
        self.key = key

    def forward(self, x: Tensor) -> Tensor:
        """x, as it is."""
        self.context.taps[self.key] = x
        return x


def tapped(edit: Edit, key: str, x: Tensor) -> Tensor:
    """What a ``Tap`` left under ``key`` for ``edit``; x if the key is empty.

    Raises:
        DeadEdit: nothing was left in this forward pass.
    """
    if not key:
        return x
    if key not in edit.context.taps:
        raise DeadEdit(f"the adapter at {edit.site.path!r} waits for the input of {key!r}, whose tap is off or is never reached: "
                       "switch both on or off together")
    left: Tensor = edit.context.taps.pop(key)  # kept no longer than needed: it holds the graph
    return left


@register("bottleneck-beside")
class Beside(Projections):
    """y + A(x), where x is what a ``Tap`` left under ``key``, or the site's own input if ``key`` is empty.

    y is what the site gives out, or at ``port="input"`` what it takes in.
    """

    additive = True
    rowwise = True

    def __init__(self, site: Site, key: str, width: int, rank: int, act: str, init: str, std: float, scale: float = 1.0,
                 dropout: float = 0.0, norm: bool = False, learned: bool = False, port: str = "output"):
        if port not in ("input", "output") or (port == "input" and not key):
            raise ValueError(f"an adapter beside something acts on 'output', or with a key on 'input', not on {port!r}")
        out = site.din if port == "input" else site.dout
        super().__init__(site, rank, width, act, init, std, scale, dropout, norm, learned=learned, out=out)
        self.key, self.port = key, port

    def read(self, y: Tensor, x: Tensor) -> Tensor:
        """What the tap left, or x; [..., width].

        Raises:
            DeadEdit: nothing was left under the key in this forward pass.
        """
        return tapped(self, self.key, x)

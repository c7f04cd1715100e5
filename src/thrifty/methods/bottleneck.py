"""The bottleneck that every adapter is made of: A(h) = s (act(h W_d + b_d) W_u + b_u), with W_d [d, m] and W_u [m, d].

Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019, arXiv:1902.00751.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Branch, Edit, Site, register
from ..core.errors import DeadEdit


def _gelu_tanh(t: Tensor) -> Tensor:
    return F.gelu(t, approximate="tanh")


def _identity(t: Tensor) -> Tensor:
    return t


ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "gelu": F.gelu, "gelu_tanh": _gelu_tanh, "swish": F.silu, "tanh": torch.tanh, "identity": _identity}


class Projections(Branch):
    """The projections ``down`` [d -> m] and ``up`` [m -> dout] and what lies between. Biases start at zero.

    ``init``: "normal" and "truncated" (at two deviations) draw both weights with deviation ``std``; "zero" draws W_d as
    nn.Linear does and sets W_u to zero, so that the branch starts as nothing.
    """

    def __init__(self, site: Site, rank: int, width: int, act: str, init: str, std: float, scale: float = 1.0,
                 dropout: float = 0.0):
        super().__init__(site)
        self.down, self.up = nn.Linear(width, rank), nn.Linear(rank, site.dout)
        self.act, self.scale, self.dropout = ACTS[act], scale, nn.Dropout(dropout)
        for layer in (self.down, self.up):
            nn.init.zeros_(layer.bias)
            if init == "normal":
                nn.init.normal_(layer.weight, std=std)
            elif init == "truncated":
                nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
        if init == "zero":
            nn.init.zeros_(self.up.weight)

    def branch(self, h: Tensor) -> Tensor:
        """A(h): h [..., d] -> [..., dout], in the precision of the parameters."""
        return self.scale * self.up(self.dropout(self.act(self.down(h.to(self.up.weight.dtype)))))


@register("bottleneck")
class Bottleneck(Projections):
    """y + A(y): the adapter reads what the site gives out, and keeps it."""

    def __init__(self, site: Site, rank: int, act: str, init: str, std: float, scale: float = 1.0, dropout: float = 0.0):
        super().__init__(site, rank, site.dout, act, init, std, scale, dropout)


@register("bottleneck-before-norm")
class BeforeNorm(Projections):
    """LN(u + A(LN(u))) at a post-norm: the adapter reads the normalised sum u and adds to the sum; LN is used twice."""

    kept = "after.mlp"

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


@register("bottleneck-beside")
class Beside(Projections):
    """y + A(x), where x is what a ``Tap`` left under ``key``, or the site's own input if ``key`` is empty."""

    additive = True

    def __init__(self, site: Site, key: str, width: int, rank: int, act: str, init: str, std: float, scale: float = 1.0,
                 dropout: float = 0.0):
        super().__init__(site, rank, width, act, init, std, scale, dropout)
        self.key = key

    def read(self, y: Tensor, x: Tensor) -> Tensor:
        """What the tap left, or x; [..., width].

        Raises:
            DeadEdit: nothing was left under the key in this forward pass.
        """
        if not self.key:
            return x
        if self.key not in self.context.taps:
            raise DeadEdit(f"the adapter at {self.site.path!r} waits for the input of {self.key!r}, whose tap is off or "
                           "is never reached: switch both on or off together")
        return self.context.taps.pop(self.key)  # kept no longer than needed: it holds the graph

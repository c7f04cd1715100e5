"""Tuners: small trainable branches that stand beside a frozen operation, x' = OP(x) + T(x), unbound from it.

Rethinking Efficient Tuning Methods from a Unified Perspective (Jiang, Mao, Huang, Lv, Zhao, Zhou; 2023, arXiv:2303.00690);
Res-Tuning: A Flexible and Efficient Tuning Paradigm via Unbinding Tuner from Backbone (Jiang, Mao, Huang, Ma, Lv, Shen, Zhao,
Zhou; NeurIPS 2023, arXiv:2310.19859).
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...core import AttentionEdit, Branch, Site, apply_weight, register
from ...core.errors import Unfit
from ...core.part import Part
from ...core.site import at_path
from .bottleneck import Projections, tapped

Place = list[Any]  # a projection of the same block, as plain data: [path] or [path, part, lo, hi, groups]


def refer(site: Site) -> Place:
    """The site as plain data, for a plan."""
    part = site.part
    return [site.path] if part is None else [site.path, part.name, part.lo, part.hi, part.groups]


def resolve(place: Place, at: Site) -> Site:
    """The projection that ``refer`` wrote down, in the model of the site ``at``."""
    path, *part = place
    assert at.seen.model is not None
    return at_path(at.seen.model, path, "linear", Part(*part) if part else None, at.depth, at.stack, at.seen)


@register("tuner-adapter")
class AdapterTuner(Projections):
    """y + g (act(h W_1 + b_1) W_2 + b_2), where h is what the operation read.

    ``init`` "linear" draws as nn.Linear does, "xavier" Xavier-uniform weights and biases of N(0, 1e-6); with ``zero`` W_2 and b_2
    start at zero, so that the branch starts as nothing. ``scaling`` learns g, from 1: one "scalar", or one number per
    "channel". With ``image``, what has four axes is [batch, d, height, width], and each place is a token.
    """

    additive = True

    def __init__(self, site: Site, key: str, width: int, rank: int, act: str, init: str, zero: bool, scaling: str = "none",
                 image: bool = False):
        super().__init__(site, rank, width, act, "zero" if zero else "linear", 0.0)
        self.key, self.image = key, image
        if init == "xavier":
            for layer in (self.down,) if zero else (self.down, self.up):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.normal_(layer.bias, std=1e-6)
        if scaling != "none":
            self.gain = nn.Parameter(torch.ones(1 if scaling == "scalar" else site.dout))

    def read(self, y: Tensor, x: Tensor) -> Tensor:
        """h [..., width]; places of an image become tokens.

        Raises:
            DeadEdit: the tap left nothing.
        """
        h = tapped(self, self.key, x)
        return h.movedim(1, -1) if self.image and h.dim() == 4 else h

    def branch(self, h: Tensor) -> Tensor:
        """h [..., width] -> [..., dout]."""
        return super().branch(h) * getattr(self, "gain", 1.0)

    def write(self, y: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """y + z, channels back in their place.

        Raises:
            Unfit: the operation gives out other tokens, or places, than it reads.
        """
        z = z.movedim(-1, 1) if self.image and z.dim() == 4 else z
        if z.shape != y.shape:
            raise Unfit(f"the operation at {self.site.path!r} turns {list(z.shape)} into {list(y.shape)}, so that nothing can be "
                        "added beside it token by token")
        return y + z.to(y.dtype)


@register("tuner-adapter-after")
class FollowingTuner(AdapterTuner):
    """The same, but h is what the operation gave out."""

    additive = False

    def read(self, y: Tensor, x: Tensor) -> Tensor:
        """y [..., dout]; places of an image become tokens."""
        return y.movedim(1, -1) if self.image and y.dim() == 4 else y


class Memory(nn.Module):
    """The keys and values [heads, length, dim] that a tuner looks up.

    "prefix": K_pre ~ N(0, 1) and V_pre = 0, which train. "prompt": x_pro W_k and x_pro W_v, where x_pro [length, d] ~ N(0, 0.02)
    trains and the projections are the block's own, frozen; with ``bias`` their biases are added, as to real tokens.
    """

    projections: tuple[Site, Site]

    def __init__(self, kind: str, length: int, heads: int, dim: int, k: Site, v: Site, bias: bool):
        super().__init__()
        self.kind, self.bias, self.shape = kind, bias, (length, heads, dim)
        self.__dict__["projections"] = (k, v)  # not children: they belong to the base
        if kind == "prefix":
            self.k, self.v = nn.Parameter(torch.randn(heads, length, dim)), nn.Parameter(torch.zeros(heads, length, dim))
        else:
            self.prompt = nn.Parameter(0.02 * torch.randn(length, k.din))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Keys and values."""
        if self.kind == "prefix":
            return self.k, self.v
        k, v = (project(site, self.prompt, self.bias).view(self.shape).transpose(0, 1) for site in self.projections)
        return k, v


def project(site: Site, x: Tensor, bias: bool = True) -> Tensor:
    """x [..., din] through the frozen projection at ``site``, whatever edits stand there; in the precision of x."""
    y = apply_weight(site.module, site.weight.to(x.dtype), x)
    return y if not bias or site.bias is None else y + site.bias.to(x.dtype)


def look_up(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """softmax(scale q K^T) V, without positions or masks: q [..., heads, tokens, dim] -> the same shape.

    Keys and values are [heads, length, dim] for every row, or [batch, heads, length, dim] for each. Written out, because an
    attention call would be rewritten by whatever else edits the attention here.
    """
    if q.shape[-3] != keys.shape[-3]:  # grouped queries
        keys, values = (t.repeat_interleave(q.shape[-3] // keys.shape[-3], -3) for t in (keys, values))
    return (scale * q.to(keys.dtype) @ keys.transpose(-1, -2)).softmax(-1) @ values


@register("tuner-in-attention")
class AttentionTuner(AttentionEdit):
    """Attn(q, K, V) + softmax(q P_k^T) P_v per head, before W_O: a prefix or prompt whose gate is left out.

    With the gate g of the softmax's mass, (1 - g) Attn + g T would be prefix tuning, or prompt tuning on the rows of the text.
    """

    def __init__(self, site: Site, kind: str, length: int, k: Place, v: Place, bias: bool = False):
        super().__init__(site)
        self.memory = Memory(kind, length, *site.heads, resolve(k, site), resolve(v, site), bias)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, as they are."""
        return q, k, v

    def attended(self, y: Tensor, q: Tensor, scale: float) -> Tensor:
        """y [batch, heads, tokens, dim], with what the memory holds for q added."""
        keys, values = self.memory()
        return y + look_up(q, keys, values, scale).to(y.dtype)


@register("tuner-lookup")
class LookupTuner(Branch):
    """y + T(x), T(x) = [heads of softmax(x W_q P_k^T / sqrt(d_h)) P_v] W_O, with the frozen W_q and W_O of the block's attention.

    Without ``through`` the heads are added side by side, as they are.
    """

    additive = True
    q: Site
    o: Site

    def __init__(self, site: Site, key: str, kind: str, length: int, heads: int, q: Place, k: Place, v: Place, o: Place,
                 bias: bool = False, through: bool = True):
        super().__init__(site)
        self.key, self.through = key, through
        self.__dict__["q"], self.__dict__["o"] = resolve(q, site), resolve(o, site)  # not children: they belong to the base
        keys = resolve(k, site)
        self.memory = Memory(kind, length, heads, keys.dout // heads, keys, resolve(v, site), bias)
        if not through and self.q.dout != site.dout:
            raise Unfit(f"the heads of {self.q.path!r} are {self.q.dout} wide together, {site.path!r} is {site.dout}: let them "
                        "pass through the output projection")

    def read(self, y: Tensor, x: Tensor) -> Tensor:
        """What the operation read, [..., tokens, d].

        Raises:
            DeadEdit: the tap left nothing.
        """
        return tapped(self, self.key, x)

    def branch(self, h: Tensor) -> Tensor:
        """T(h) [..., tokens, dout]."""
        keys, values = self.memory()
        q = project(self.q, h.to(keys.dtype)).unflatten(-1, (-1, keys.shape[-1])).transpose(-2, -3)
        found = look_up(q, keys, values, keys.shape[-1] ** -0.5).transpose(-2, -3).flatten(-2)
        return project(self.o, found, bias=False) if self.through else found

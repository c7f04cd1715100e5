"""Two small attentions between what a navigator sees, hears and remembers, each in few dimensions.

VLN-PETL (Qiao, Yu, Wu; ICCV 2023, arXiv:2308.10172).
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core import Edit, Site, register
from ...core.errors import DeadEdit
from .bottleneck import ACTS

STEPS = "steps of the walk"
UNSEEN = -1000.0  # a mask adds less than this to the logits of what must not be seen


class Glance(nn.Module):
    """Multi-head attention among vectors [..., r], with projections of queries, keys, values and what comes out, and biases."""

    def __init__(self, rank: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(rank, rank) for _ in range(4))

    def split(self, layer: nn.Linear, t: Tensor) -> Tensor:
        """[..., T, r] -> [..., heads, T, r / heads]."""
        out: Tensor = layer(t).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
        return out

    def merge(self, t: Tensor) -> Tensor:
        """The opposite of ``split``, projected."""
        out: Tensor = self.o(t.transpose(-2, -3).flatten(-2))
        return out

    def across(self, a: Tensor, b: Tensor, seen: Tensor) -> Tensor:
        """a [B, T, r] attends to b [B, S, r] where ``seen`` [B, 1, 1, S] is true -> [B, T, r]."""
        q, k, v = self.split(self.q, a), self.split(self.k, b), self.split(self.v, b)
        return self.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=seen))

    def back(self, a: Tensor, p: Tensor) -> Tensor:
        """Step t of a [..., T, r] attends to itself and to p before t, p [..., T, r] -> [..., T, r]."""
        q, k, v = (self.split(layer, a) for layer in (self.q, self.k, self.v))
        keys, values = self.split(self.k, p), self.split(self.v, p)
        scale = q.shape[-1] ** -0.5
        later = torch.ones(a.shape[-2], a.shape[-2], dtype=torch.bool, device=a.device).triu()
        before = (q @ keys.transpose(-1, -2) * scale).masked_fill(later, -torch.inf)
        own = (q * k).sum(-1, keepdim=True) * scale
        share = torch.cat([before, own], -1).softmax(-1)
        return self.merge(share[..., :-1] @ values + share[..., -1:] * v)


class Raise(nn.Module):
    """U act(b) + c, [..., r] -> [..., width]; both start at zero, so that nothing is added at first."""

    def __init__(self, rank: int, width: int, act: str) -> None:
        super().__init__()
        self.up, self.act = nn.Linear(rank, width), ACTS[act]
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, b: Tensor) -> Tensor:
        """[..., r] -> [..., width]."""
        out: Tensor = self.up(self.act(b))
        return out


@register("history-booster")
class HistoryBooster(Edit):
    """x_t + U act(MHA(a, [p; a])), a = D x_t [r], p = D x_<t [t, r]: step t looks back at earlier steps,
    which get no gradient by this.

    The site gives out a token for each step [B, T, width], or with ``views`` the states [B T, 36, width] of the views at each step:
    then each view looks back at itself.
    """

    def __init__(self, site: Site, width: int, rank: int, heads: int, act: str, views: bool = False) -> None:
        super().__init__(site)
        self.views = views
        self.down, self.glance, self.raised = nn.Linear(width, rank), Glance(rank, heads), Raise(rank, width, act)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """The same shape.

        Raises:
            DeadEdit: what tells the steps of a walk apart is off.
        """
        tokens = y.to(self.down.weight.dtype)
        if self.views:
            if STEPS not in self.context.taps:
                raise DeadEdit(f"the booster at {self.site.path!r} does not know the steps of the walk: switch its tap on, too")
            tokens = tokens.unflatten(0, (-1, self.context.taps[STEPS])).transpose(1, 2)
        added = self.raised(self.glance.back(self.down(tokens), self.down(tokens.detach())))
        added = added.transpose(1, 2).flatten(0, 1) if self.views else added
        out: Tensor = y + added.to(y.dtype)
        return out


@register("walk-steps")
class WalkSteps(Edit):
    """Changes nothing: leaves the number of steps T of its input [B, T, width] for what stands further on."""

    port = "input"
    passive = True

    def forward(self, x: Tensor) -> Tensor:
        """x, as it is."""
        self.context.taps[STEPS] = x.shape[1]
        return x


@register("cross-booster")
class CrossBooster(Edit):
    """With l' = D_l l and v' = D_v v of the language l and the vision v that a cross-modal layer gives out,

        v + U_v act(MHA_v(v', l', l')),   l + U_l act(MHA_l(l', v', v'))

    or the first alone where nothing reads the language (``both`` false). A stream of which nothing may be seen adds nothing.
    """

    port = "around"

    def __init__(self, site: Site, width: int, rank: int, heads: int, act: str, both: bool) -> None:
        super().__init__(site)
        self.both = both
        self.down_vision, self.down_language = nn.Linear(width, rank), nn.Linear(width, rank)
        self.to_vision, self.raise_vision = Glance(rank, heads), Raise(rank, width, act)
        if both:
            self.to_language, self.raise_language = Glance(rank, heads), Raise(rank, width, act)

    def forward(self, run: Callable[..., tuple[Tensor, Tensor]], *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """vision [B, T, width], its mask [B, 1, 1, T], language [B, L, width], its mask -> vision and language."""
        vision, language = run(*args, **kwargs)
        vision_mask, language_mask = args[1], args[3]
        v, w = (down(t.to(down.weight.dtype)) for down, t in ((self.down_vision, vision), (self.down_language, language)))
        added = self._add(self.to_vision, self.raise_vision, v, w, language_mask)
        if self.both:
            language = language + self._add(self.to_language, self.raise_language, w, v, vision_mask).to(language.dtype)
        return vision + added.to(vision.dtype), language

    def _add(self, glance: Glance, raised: Raise, a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
        seen = mask > UNSEEN
        some = seen.any(-1, keepdim=True)  # where nothing may be seen all is looked at, so that no softmax is empty, and dropped
        out: Tensor = raised(glance.across(a, b, seen | ~some)) * some[:, 0].to(a.dtype)
        return out


@register("let-through")
class LetThrough(Edit):
    """x, in the place of a copy of it that lets no gradient back: the numbers are the same."""

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """x."""
        return x

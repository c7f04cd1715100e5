"""VL-PET: Vision-and-Language Parameter-Efficient Tuning via Granularity Control (Hu, Li, Lyu, Wang; ICCV 2023,
arXiv:2308.09804)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import Branch, Edit, Method, Site, need, register
from ..core.errors import NoSuchSite, Unfit
from .branches.bottleneck import ACTS, Tap, tapped
from .branches.operations import attentions, by_block, feed_forwards
from .branches.stream import halves
from .prompts.widening import writes_on
from .vl_adapter import train_visual

if TYPE_CHECKING:
    from ..core import Attachment

GATES = ("large", "middleX", "middleY", "small")


class Granularity(nn.Module):
    """G, which says how much of a sub-layer passes, from its input x and its adapted output y, both [batch, tokens, d].

    large    sigmoid(V_2 gelu(V_1 x + v_1) + v_2)                [batch, tokens, d]
    middleX  sigmoid(w (x + y) + b)                              [batch, tokens, 1]
    middleY  1 + g, g ~ N(0, 0.02)                               [d]
    small    mean over tokens of sigmoid(w [x; y] + b)           [batch, 1, 1], padding included
    """

    def __init__(self, kind: str, width: int, rank: int, zero: bool):
        super().__init__()
        self.kind = kind
        if kind == "large":
            self.first, self.second = nn.Linear(width, rank), nn.Linear(rank, width)
            if zero:
                nn.init.zeros_(self.second.weight)
        elif kind == "middleY":
            self.g = nn.Parameter(0.02 * torch.randn(width))
        else:
            self.first = nn.Linear(width if kind == "middleX" else 2 * width, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """G, to be multiplied with y."""
        if self.kind == "middleY":
            return 1 + self.g
        if self.kind == "large":
            return self.second(ACTS["gelu_tanh"](self.first(x))).sigmoid()
        opened: Tensor = self.first(x + y if self.kind == "middleX" else torch.cat([x, y], -1)).sigmoid()
        return opened if self.kind == "middleX" else opened.mean(1, keepdim=True)


@register("vl-pet")
class Granular(Edit):
    """s G (h + U gelu([D_1 h + d_1; .. ; D_k h + d_k]) + u) where a sub-layer ends, before its dropout.

    D_i [rank / k, d], U [d, rank], gelu by its tanh form, G of a ``Granularity``. x, what the sub-layer adds its result to, is left
    under ``key``. With ``zero``, U and V_2 start at zero.
    """

    def __init__(self, site: Site, key: str, rank: int, heads: int, gate: str, gate_rank: int, scale: float, zero: bool):
        super().__init__(site)
        self.port = "input" if isinstance(site.module, nn.Dropout) else "output"
        self.key, self.scale = key, scale
        self.down = nn.ModuleList(nn.Linear(site.dout, rank // heads) for _ in range(heads))
        self.up = nn.Linear(rank, site.dout)
        if zero:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)
        self.gate = Granularity(gate, site.dout, gate_rank, zero)

    def forward(self, h: Tensor, _: Tensor | None = None) -> Tensor:
        """h [batch, tokens, d] -> the same shape.

        Raises:
            DeadEdit: x was not left in this forward pass.
        """
        kind = self.up.weight.dtype
        x, y = tapped(self, self.key, h).to(kind), h.to(kind)
        y = y + self.up(ACTS["gelu_tanh"](torch.cat([down(y) for down in self.down], -1)))
        return (self.scale * self.gate(x, y) * y).to(h.dtype)


@register("vl-pet-value")
class ValueAdapter(Branch):
    """y + U' gelu(D' e) beside a projection y of e; U' starts at zero with ``zero``."""

    additive = True

    def __init__(self, site: Site, rank: int, zero: bool):
        super().__init__(site)
        self.down, self.up = nn.Linear(site.din, rank), nn.Linear(rank, site.dout)
        if zero:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def read(self, y: Tensor, x: Tensor) -> Tensor:
        """e [..., din]."""
        return x

    def branch(self, h: Tensor) -> Tensor:
        """[..., din] -> [..., dout]."""
        return self.up(ACTS["gelu_tanh"](self.down(h.to(self.up.weight.dtype))))


@dataclass
class VLPET(Method):
    """In the encoder, adapters with ``heads`` down-projections behind a gate; in the decoder, one beside each cross value.

        encoder:  x + dropout(s G (h + U gelu(concat_i(D_i h + d_i)) + u)),   h what attention or feed-forward network makes of x
        decoder:  V = W_v e + U' gelu(D' e),   e what the encoder gives out

    x is the residual (before any norm in a pre-norm model). G is as fine as ``gate`` says: "large" one number per feature and
    token, "middleX" per token, "middleY" per feature, "small" per row; see ``Granularity``. Normalisations train in the encoder
    and not in the decoder, and parameters named ``visual_embedding`` where there are any. As G starts near a half, the model does
    not start as it was. "vl-pet-t5" are the authors' numbers for T5: rank 192, s = 0.3, and U, V_2 and U' start at zero.

    "small" averages over padding too, so that answers depend on how far a batch is padded, and over tokens to come: a decoder for
    generation is refused with it.
    """

    name = "vl-pet"
    presets = {"vl-pet-large": {"gate": "large"}, "vl-pet-middlex": {"gate": "middleX"}, "vl-pet-middley": {"gate": "middleY"},
               "vl-pet-small": {"gate": "small"},
               "vl-pet-t5": {"rank": 192, "gate_rank": 192, "value_rank": 192, "scale": 0.3, "zero": True}}
    route = "add modules"
    modalities = ("text", "image")
    paper = ("Hu et al., VL-PET: Vision-and-Language Parameter-Efficient Tuning via Granularity Control, ICCV 2023, "
             "arXiv:2308.09804")
    trains = "gated bottlenecks and norms in the encoder, a bottleneck beside each cross value, the visual embedding"
    inference = "one small network and a gate more per sub-layer of the encoder; the decoder's are cached with its values"
    identity_at_start = False
    rate = 1e-3

    rank: int = 96
    heads: int = 4
    gate: str = "large"
    gate_rank: int = 96
    value_rank: int = 96
    scale: float = 1.0
    zero: bool = False
    where: str = "block"

    def check(self) -> None:
        """Sizes are positive, the heads divide the rank, the gate is known."""
        for setting in ("rank", "heads", "gate_rank", "value_rank"):
            need(getattr(self, setting) >= 1, self, setting, "at least 1")
        need(self.rank % self.heads == 0, self, "rank", f"a multiple of heads = {self.heads}")
        need(self.gate in GATES, self, "gate", f"one of {', '.join(GATES)}")
        need(self.scale > 0, self, "scale", "positive")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Taps and adapters in the encoder, adapters beside the decoder's cross values, and what trains in place.

        Raises:
            NoSuchSite: a block lacks an attention or a feed-forward network.
            Unfit: the model writes on, and the gate looks at the whole text.
        """
        if self.gate == "small" and writes_on(at):
            raise Unfit(f"the gate 'small' averages over the whole text, and {type(at.model).__name__} writes on where it ends: in "
                        "training it would see what comes next. Use another gate")
        every = at.sites(self.where)
        across = by_block(at, every, "cross")
        encoder = [block for block in every if not across[block.path]]
        for block, half, reads in residuals(at, encoder):
            ends = by_block(at, [block], f"after.{half}")[block.path]
            if len(ends) != 1:
                raise NoSuchSite(f"{block.path!r} ({type(block.module).__name__}) has {len(ends)} places after.{half} where its "
                                 "sub-layer ends, and one is needed")
            at.put(reads, Tap, key=f"{block.path}:{half}")
            at.put(ends[0], Granular, key=f"{block.path}:{half}", rank=self.rank, heads=self.heads, gate=self.gate,
                   gate_rank=self.gate_rank, scale=self.scale, zero=self.zero)
        values = by_block(at, [block for block in every if across[block.path]], "attn.v")
        for site in (site for sites in values.values() for site in sites if "cross" in site.within):
            at.put(site, ValueAdapter, rank=self.value_rank, zero=self.zero)
        inside = tuple({block.stack[: block.stack.rfind(".") + 1] for block in encoder})
        for norm in at.sites("norm*"):
            if norm.path.startswith(inside):
                for name, _ in norm.module.named_parameters(recurse=False):
                    at.train(f"{norm.path}.{name}", wildcard=True)
        train_visual(at)


def residuals(at: Attachment, blocks: list[Site]) -> list[tuple[Site, str, Site]]:
    """(block, "attn" or "mlp", the place that reads what the sub-layer adds its result to) for every half of the blocks.

    Raises:
        NoSuchSite: a block lacks an attention or a feed-forward network.
        Unfit: a block's norms stand neither in front of its halves nor behind them.
    """
    behind = by_block(at, blocks, "norm.mlp")
    found = [(half.block, kind, norm) for half in halves(at, [b for b in blocks if not behind[b.path]])
             for kind, norm in (("attn", half.first), ("mlp", half.second))]
    after = [b for b in blocks if behind[b.path]]
    attending, networks = attentions(at, after), feed_forwards(at, after)
    for block in after:
        if block.path not in attending or block.path not in networks:
            raise NoSuchSite(f"{block.path!r} ({type(block.module).__name__}) has no attention, or no feed-forward network")
        found += [(block, "attn", attending[block.path].whole), (block, "mlp", networks[block.path][0])]
    return found

"""Prefix-Tuning: Optimizing Continuous Prompts for Generation (Li, Liang; ACL 2021, arXiv:2101.00190); without the MLP it is
P-Tuning v2 (Liu, Ji, Fu, Tam, Du, Yang, Tang; ACL 2022, arXiv:2110.07602)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import AttentionEdit, Method, Shared, Site, need, register
from ..core.errors import NoSuchSite

if TYPE_CHECKING:
    from ..core import Attachment


@register("prefix-network")
class Network(Shared):
    """Makes the prefixes of all layers while training: Z = tanh(E W_1 + b_1) W_2 + b_2, E [length, width].

    There is one (E, W_1, W_2) per kind of attention. ``kinds`` lists their {"width": of E, "sizes": of a key, per layer}.
    """

    def __init__(self, length: int, hidden: int, kinds: list[dict[str, Any]]):
        super().__init__()
        self.sizes = [kind["sizes"] for kind in kinds]
        self.tables = nn.ModuleList(nn.Embedding(length, kind["width"]) for kind in kinds)
        self.first = nn.ModuleList(nn.Linear(kind["width"], hidden) for kind in kinds)
        self.second = nn.ModuleList(nn.Linear(hidden, 2 * sum(kind["sizes"])) for kind in kinds)

    def forward(self, kind: int, layer: int) -> Tensor:
        """Keys and values of one layer, [length, 2 size]: only its own columns of W_2 are multiplied."""
        table: Any = self.tables[kind]
        second: Any = self.second[kind]
        start = 2 * sum(self.sizes[kind][:layer])
        columns = slice(start, start + 2 * self.sizes[kind][layer])
        return F.linear(torch.tanh(self.first[kind](table.weight)), second.weight[columns], second.bias[columns])


@register("prefix")
class Prefix(AttentionEdit):
    """K <- [P_k; K], V <- [P_v; V], with P_k, P_v [key-value heads, length, head width], the same for every row of the batch.

    Every query sees the prefix, whatever the mask. The keys are put where attention is computed, behind any rotation and
    any cache: positions of the text do not move. With ``kind`` at or above 0 the shared network makes P_k and P_v.
    """

    def __init__(self, site: Site, length: int, dropout: float = 0.0, kind: int = -1, layer: int = 0):
        super().__init__(site)
        heads, dim = site.heads
        self.shape, self.kind, self.layer, self.dropout = (length, 2, heads, dim), kind, layer, nn.Dropout(dropout)
        if kind < 0:
            self.k, self.v = (nn.Parameter(torch.randn(heads, length, dim)) for _ in range(2))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [batch, heads, tokens, dim] -> q as it is, k and v with ``length`` tokens more in front."""
        front_k, front_v = self.pair()
        return q, self._before(front_k, k), self._before(front_v, v)

    def pair(self) -> tuple[Tensor, Tensor]:
        """P_k and P_v."""
        if self.kind < 0:
            return self.k, self.v
        k, v = self.context.shared(self.kind, self.layer).view(self.shape).permute(1, 2, 0, 3)
        return k, v

    def keep(self, k: Tensor, v: Tensor) -> None:
        """Hold P_k and P_v from now on, instead of asking the network."""
        self.k, self.v, self.kind, self.layer = nn.Parameter(k.contiguous()), nn.Parameter(v.contiguous()), -1, 0

    def _before(self, front: Tensor, t: Tensor) -> Tensor:
        front = self.dropout(front).to(t.dtype)
        if t.shape[1] != front.shape[0]:  # grouped queries: the model has repeated its key-value heads already
            front = front.repeat_interleave(t.shape[1] // front.shape[0], 0)
        return torch.cat([front.expand(t.shape[0], -1, -1, -1), t], 2)


@dataclass
class PrefixTuning(Method):
    """Learned keys and values in front of those of every attention; queries and positions are left alone.

    With ``mlp`` (the paper) a network makes them while training, one for each kind of attention: self-attention of the
    encoder, of the decoder, and cross-attention. ``flatten`` then throws the network away and keeps what it made, exactly;
    ``thrifty tune`` does so at the end. Without ``mlp`` the keys and values train themselves, from N(0, 1).

    A prefix of zeros is not the base model: zero logits take their share of the softmax. Positions do not shift, so
    adapters made through a cache, in models with absolute positions, are not interchangeable with these. ``where`` is every
    attention unless it names some.
    """

    name = "prefix"
    aliases = ("prefix-tuning",)
    presets = {"p-tuning-v2": {"mlp": False, "length": 20, "dropout": 0.1}}
    route = "input and output"
    paper = "Li, Liang, Prefix-Tuning: Optimizing Continuous Prompts for Generation, ACL 2021, arXiv:2101.00190"
    trains = "keys and values [length] in front of those of each attention"
    inference = "attention over `length` positions more"
    Edit = Prefix
    identity_at_start = False
    rate = 1e-4

    length: int = 10
    mlp: bool = True
    hidden: int = 512
    dropout: float = 0.0
    where: str = ""

    def check(self) -> None:
        """Lengths and widths are positive, dropout is a probability."""
        need(self.length >= 1, self, "length", "at least 1")
        need(self.hidden >= 1, self, "hidden", "at least 1")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """One edit per attention, and the network that they share."""
        kinds: dict[tuple[str, str], list[Site]] = {}
        for site in at.sites(self.where) if self.where else _attentions(at):
            kinds.setdefault((site.stack, site.role), []).append(site)
        if self.mlp:
            sizes = [[s.heads[0] * s.heads[1] for s in sites] for sites in kinds.values()]
            at.share(Network, length=self.length, hidden=self.hidden,
                     kinds=[{"width": sites[0].din, "sizes": size} for sites, size in zip(kinds.values(), sizes, strict=True)])
        for kind, sites in enumerate(kinds.values()):
            for layer, site in enumerate(sites):
                made = {"kind": kind, "layer": layer} if self.mlp else {}
                at.put(site, Prefix, length=self.length, dropout=self.dropout, **made)

    def finish(self, at: Attachment) -> None:
        """Drop the network."""
        flatten(at)


@torch.no_grad()
def flatten(at: Attachment) -> None:
    """Replace the network of a prefix by the keys and values that it makes. The outputs do not change; less is saved.

    An optimiser made before holds the network's parameters: make a new one to train on.
    """
    if not isinstance(at.context.shared, Network):
        return
    for row in at.plan:
        edit = at.edits[row.key]
        if isinstance(edit, Prefix) and edit.kind >= 0:
            edit.keep(*(t.detach().clone() for t in edit.pair()))
            row.numbers = {k: n for k, n in row.numbers.items() if k not in ("kind", "layer")}
    at.unshare()


def _attentions(at: Attachment) -> list[Site]:
    """Every self-attention, and cross-attention where there is any."""
    try:
        return at.sites("attn|cross")
    except NoSuchSite:
        return at.sites("attn")

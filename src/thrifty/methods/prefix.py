"""Prefix-Tuning: Optimizing Continuous Prompts for Generation (Li, Liang; ACL 2021, arXiv:2101.00190); without the MLP it is
P-Tuning v2 (Liu, Ji, Fu, Tam, Du, Yang, Tang; ACL 2022, arXiv:2110.07602)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import AttentionEdit, Edit, Method, Shared, Site, need, register
from ..core.errors import NoSuchSite, Unfit
from .prompts.widening import position_limit

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

    @property
    def rowwise(self) -> bool:  # type: ignore[override]
        """Once the network is gone."""
        return self.kind < 0

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
        return torch.cat([self.spread(front, len(t)), t], 2)

    def spread(self, front: Tensor, batch: int) -> Tensor:
        """P_k or P_v [heads, length, dim] for every row: [batch, heads, length, dim]."""
        return front.expand(batch, -1, -1, -1)


@register("shift-positions")
class Shift(Edit):
    """positions + ``by``, at a table of position embeddings: the text begins behind a prefix that stands in the cache."""

    port = "input"

    def __init__(self, site: Site, by: int):
        super().__init__(site)
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        """Position ids of any shape -> the same, moved.

        Raises:
            Unfit: the table has no such positions.
        """
        table: Any = self.site.module
        if not torch.compiler.is_compiling() and (last := int(x.max()) + self.by) >= table.num_embeddings:
            raise Unfit(f"the text reaches position {last} behind a prefix of {self.by}, and {self.site.path!r} ends at "
                        f"{table.num_embeddings - 1}: shorten the text or the prefix")
        return x + self.by


@dataclass
class PrefixTuning(Method):
    """Learned keys and values in front of those of every attention; queries and positions are left alone.

    With ``mlp`` (the paper) a network makes them while training, one for each kind of attention: self-attention of the
    encoder, of the decoder, and cross-attention. ``flatten`` then throws the network away and keeps what it made, exactly;
    ``thrifty tune`` does so at the end. Without ``mlp`` the keys and values train themselves, from N(0, 1).

    A prefix of zeros is not the base model: zero logits take their share of the softmax. With ``shift`` the text's positions
    begin behind the prefix, as they do where it stands in the model's cache (the authors of both papers put it there): in a
    model with a table of positions that leaves ``length`` fewer for the text; relative and rotary positions know no
    difference. P-tuning v2 is ``mlp=False, shift=True``, with dropout on the keys and values, and a head beside it; its
    pooler stays frozen. ``where`` is every attention unless it names some.
    """

    name = "prefix"
    aliases = ("prefix-tuning",)
    presets = {"p-tuning-v2": {"mlp": False, "length": 20, "dropout": 0.1, "shift": True}}
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
    shift: bool = False
    where: str = ""

    def start_rate(self) -> float:
        """Keys and values that train themselves want the rate of P-tuning v2."""
        return self.rate if self.mlp else 5e-3

    def check(self) -> None:
        """Lengths and widths are positive, dropout is a probability."""
        need(self.length >= 1, self, "length", "at least 1")
        need(self.hidden >= 1, self, "hidden", "at least 1")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """One edit per attention, the network that they share, and perhaps a shift of the positions.

        Raises:
            Unfit: there is no attention to edit, or no room for a prefix of this length among the positions.
        """
        kinds = by_kind(at.sites(self.where) if self.where else _attentions(at))
        if self.mlp:
            share_network(at, kinds, self.length, self.hidden)
        for kind, sites in enumerate(kinds):
            for layer, site in enumerate(sites):
                made = {"kind": kind, "layer": layer} if self.mlp else {}
                at.put(site, Prefix, length=self.length, dropout=self.dropout, **made)
        if self.shift:
            _shift(at, self.length)

    def finish(self, at: Attachment) -> None:
        """Drop the network."""
        flatten(at)


def by_kind(sites: list[Site]) -> list[list[Site]]:
    """Attentions of one stack and one role together: each kind of attention has a network of its own."""
    kinds: dict[tuple[str, str], list[Site]] = {}
    for site in sites:
        kinds.setdefault((site.stack, site.role), []).append(site)
    return list(kinds.values())


def share_network(at: Attachment, kinds: list[list[Site]], length: int, hidden: int) -> None:
    """Keep at the root what makes the prefixes of these attentions."""
    at.share(Network, length=length, hidden=hidden,
             kinds=[{"width": sites[0].din, "sizes": [s.heads[0] * s.heads[1] for s in sites]} for sites in kinds])


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


def _shift(at: Attachment, by: int) -> None:
    """Move the positions of the text, wherever the model looks them up in a table."""
    limit = position_limit(at, Site("", at.model, "model", seen=at.seen))
    if limit and by >= limit:
        raise Unfit(f"a prefix of {by} leaves no room in the {limit} positions of {type(at.model).__name__}")
    for site in at.sites("position") if limit else ():
        if type(site.module) is not nn.Embedding:
            raise Unfit(f"{site.path!r} ({type(site.module).__name__}) makes its positions itself, so they cannot be moved "
                        "behind a prefix: use shift=False")
        at.put(site, Shift, by=by)


def _attentions(at: Attachment) -> list[Site]:
    """Every self-attention, and cross-attention where there is any."""
    try:
        return at.sites("attn|cross")
    except NoSuchSite:
        return at.sites("attn")

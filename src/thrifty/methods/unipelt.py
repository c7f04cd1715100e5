"""UniPELT: A Unified Framework for Parameter-Efficient Language Model Tuning (Mao, Mathias, Hou, Almahairi, Ma, Han, Yih,
Khabsa; ACL 2022, arXiv:2110.07577)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..core import Edit, Method, Site, need, register
from ..core.errors import CannotCombine, CannotMerge, DeadEdit, NoSuchSite, Unfit
from .branches.bottleneck import BeforeNorm, Bottleneck, Projections
from .branches.operations import attentions, by_block
from .lora import LowRank
from .pfeiffer import after_sum
from .prefix import Prefix, by_kind, flatten, share_network
from .prompts.gate import Gate, RealTokensTap
from .prompts.widening import writes_on

if TYPE_CHECKING:
    from ..core import Attachment


@register("gate-tap")
class GateTap(Edit):
    """Changes nothing: leaves the gate of the prefix, made of what the attention reads."""

    port = "input"

    def __init__(self, site: Site):
        super().__init__(site)
        self.gate = Gate(site.din)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, tokens, d], as it is."""
        self.context.taps[self.site.path] = self.gate(x, self.context.taps.get("mask"))
        return x


@register("gated-prefix")
class GatedPrefix(Prefix):
    """K <- [G P_k; K], V <- [G P_v; V], with the gate G [batch] that a ``GateTap`` left."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As of ``Prefix``.

        Raises:
            DeadEdit: no gate was left in this forward pass.
        """
        if self.site.path not in self.context.taps:
            raise DeadEdit(f"the prefix at {self.site.path!r} waits for its gate, which is off: switch both on or off together")
        rewritten = super().forward(q, k, v)
        del self.context.taps[self.site.path]  # kept no longer than needed: it holds the graph
        return rewritten

    def spread(self, front: Tensor, batch: int) -> Tensor:
        """G P, one for every row: [batch, heads, length, dim]."""
        gate: Tensor = self.context.taps[self.site.path]
        return gate[..., None].to(front.dtype) * front


@register("gated-low-rank")
class GatedLowRank(LowRank):
    """y + G s B A x, where the gate G [batch] reads x; s is 1 (the gate stands in its place), or alpha / rank if alpha > 0."""

    def __init__(self, site: Site, rank: int, alpha: float = 0.0):
        super().__init__(site, rank, alpha or rank)
        self.gate = Gate(site.din)

    def update(self, x: Tensor) -> Tensor:
        """G s B A x."""
        return self.gate(x, self.context.taps.get("mask")) * super().update(x)

    def delta(self, weight: Tensor) -> Tensor:
        """None: the gate depends on the text.

        Raises:
            CannotMerge: always.
        """
        raise CannotMerge(f"the update at {self.site.path!r} is gated by the text, so it is no change of a weight")

    @classmethod
    def combine(cls, edits: list[Any], weights: list[float]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """None: gates do not add up.

        Raises:
            CannotCombine: always.
        """
        raise CannotCombine("gated low-rank edits have no exact sum: each has a gate of its own")


class Gated(Projections):
    """G A(h): an adapter whose gate G [batch] reads what the adapter reads."""

    gate: Gate

    def branch(self, h: Tensor) -> Tensor:
        """h [batch, tokens, d] -> the same shape."""
        return self.gate(h, self.context.taps.get("mask")) * super().branch(h)


@register("gated-bottleneck")
class GatedBottleneck(Gated, Bottleneck):
    """y + G A(y)."""

    def __init__(self, site: Site, rank: int, act: str, init: str, std: float):
        super().__init__(site, rank, act, init, std)
        self.gate = Gate(site.dout)


@register("gated-bottleneck-before-norm")
class GatedBeforeNorm(Gated, BeforeNorm):
    """LN(u + G A(LN(u))) at a post-norm."""

    def __init__(self, site: Site, rank: int, act: str, init: str, std: float):
        super().__init__(site, rank, act, init, std)
        self.gate = Gate(site.dout)


@dataclass
class UniPELT(Method):
    """A prefix, LoRA on queries and values, and a Pfeiffer adapter in every block, each behind a gate that reads the text.

        G = mean over tokens of sigmoid(x w + b), one number per example
        K' = [G P_k; K], V' = [G P_v; V];   q = x W_q + G x A B, likewise v;   y = h + G relu(LN(h) D) U

    A network makes the prefix while training and is dropped at the end. A gate of 0 does not take a prefix away: keys of zeros
    keep their share of the softmax. ``alpha`` 0 is the paper's LoRA, where the gate stands in the place of alpha / rank;
    "unipelt-adapterhub" scales by 2 / 8 as well. ``pool="official"`` averages gates over padding too, as the authors' code does,
    so that answers depend on how far a batch is padded; "masked" over real tokens alone.

    Gates read the whole text, so blocks that write on are left out: of an encoder-decoder the encoder's take part, and a decoder
    for generation is refused.
    """

    name = "unipelt"
    presets = {"unipelt-adapterhub": {"alpha": 2.0}}
    route = "add modules"
    paper = "Mao et al., UniPELT: A Unified Framework for Parameter-Efficient Language Model Tuning, ACL 2022, arXiv:2110.07577"
    trains = "prefix, LoRA and adapter in each block, with a gate each"
    inference = "prefix, low-rank products and one small network more per layer"
    identity_at_start = False
    rate = 5e-4

    length: int = 10
    rank: int = 8
    alpha: float = 0.0
    reduction: int = 16
    mlp: bool = True
    hidden: int = 512
    pool: str = "masked"
    where: str = "block"

    def check(self) -> None:
        """Sizes are positive, the way of pooling is known."""
        for setting in ("length", "rank", "reduction", "hidden"):
            need(getattr(self, setting) >= 1, self, setting, "at least 1")
        need(self.alpha >= 0, self, "alpha", "positive, or 0 where the gate stands for the scale")
        need(self.pool in ("masked", "official"), self, "pool", "'masked' or 'official'")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Per block: the mask, the gate and the prefix at its attention, LoRA on q and v, the adapter at its end.

        Raises:
            NoSuchSite: a block has no attention with q and v, or no feed-forward network.
            Unfit: the blocks write on where the text ends, or their tokens do not run along the second axis.
        """
        blocks = self._blocks(at)
        found = attentions(at, blocks)
        for block in blocks:
            if block.path not in found:
                raise NoSuchSite(f"{block.path!r} ({type(block.module).__name__}) has no attention with a q and a v to adapt")
        made: dict[str, dict[str, int]] = {}
        if self.mlp:
            kinds = by_kind([found[block.path].whole for block in blocks])
            share_network(at, kinds, self.length, self.hidden)
            made = {site.key: {"kind": k, "layer": i} for k, sites in enumerate(kinds) for i, site in enumerate(sites)}
        for block in blocks:
            whole = found[block.path].whole
            if self.pool == "masked":
                at.put(block, RealTokensTap)
            at.put(whole, GateTap)
            at.put(whole, GatedPrefix, length=self.length, **made.get(whole.key, {}))
            for site in (found[block.path].q, found[block.path].v):
                at.put(site, GatedLowRank, rank=self.rank, alpha=self.alpha)
            site, kind = after_sum(at, block)
            at.put(site, GatedBeforeNorm if kind is BeforeNorm else GatedBottleneck,
                   rank=max(1, site.dout // self.reduction), act="relu", init="normal", std=0.02)

    def finish(self, at: Attachment) -> None:
        """Drop the network of the prefix."""
        flatten(at)

    def _blocks(self, at: Attachment) -> list[Site]:
        every = at.sites(self.where)
        across = by_block(at, every, "cross")
        blocks = [b for b in every if not across[b.path]]
        if not blocks or writes_on(at):
            raise Unfit(f"UniPELT's gates look at the whole text, and the blocks {self.where!r} of {type(at.model).__name__} write "
                        "on where it ends: in training they would see what comes next. Use an encoder")
        if any(isinstance(m, nn.MultiheadAttention) and not m.batch_first for m in at.model.modules()):
            raise Unfit("UniPELT averages over the second axis, and this nn.MultiheadAttention has its tokens along the first: "
                        "make it with batch_first=True")
        return blocks

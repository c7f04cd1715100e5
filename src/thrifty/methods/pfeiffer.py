"""The single adapter of AdapterFusion: Non-Destructive Task Composition for Transfer Learning (Pfeiffer, Kamath, Rücklé, Cho,
Gurevych; EACL 2021, arXiv:2005.00247)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core import Method, Site, need
from ..core.errors import NoSuchSite
from .branches.bottleneck import ACTS, BeforeNorm, Bottleneck, Projections

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class Pfeiffer(Method):
    """One adapter per layer, after the feed-forward network. With h = drop(FFN(a)) and the residual a:

        post-norm models   y = LN(h + a + A(LN(h + a)))   the layer's own frozen LN, twice
        pre-norm models    y = h + a + A(h + a)

    ``reads="sublayer"`` is the form of Compacter and of He et al.: h + A(h) before the residual, in every model. ``where``
    names blocks. Both weights start at N(0, 0.02), so the model does not start as the base. Rank 0 stands for d / 16.
    """

    name = "pfeiffer"
    aliases = ("seq_bn",)
    route = "add modules"
    paper = "Pfeiffer et al., AdapterFusion: Non-Destructive Task Composition, EACL 2021, arXiv:2005.00247"
    trains = "one bottleneck per layer"
    inference = "one small network more per layer"
    identity_at_start = False
    rate = 1e-4

    rank: int = 0
    act: str = "relu"
    reads: str = "sum"
    where: str = "block"

    def check(self) -> None:
        """The activation and the form are known."""
        need(self.act in ACTS, self, "act", f"one of {sorted(ACTS)}")
        need(self.reads in ("sum", "sublayer"), self, "reads", "'sum' or 'sublayer'")
        need(self.rank >= 0, self, "rank", "positive, or 0 for a sixteenth of the width")

    def numbers(self, site: Site) -> dict[str, Any]:
        """AdapterHub's start."""
        return {"rank": self.rank or max(1, site.dout // 16), "act": self.act, "init": "normal", "std": 0.02}

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """One edit per block, at the place that the form and the block's kind of normalisation ask for.

        Raises:
            NoSuchSite: a block has no feed-forward network.
        """
        for block in at.sites(self.where):
            if self.reads == "sublayer":
                after = _after_mlp(at, block)
                at.put(after, Bottleneck, **self.numbers(after))
            else:
                site, kind = after_sum(at, block)
                at.put(site, kind, **self.numbers(site))


def after_sum(at: Attachment, block: Site) -> tuple[Site, type[Projections]]:
    """Where an adapter of the block's last sum goes, and which kind it is: at a post-norm, or else at the block itself.

    Raises:
        NoSuchSite: the block has no feed-forward network.
    """
    _after_mlp(at, block)
    norm = _inside(at, block, "norm.mlp")
    return (norm, BeforeNorm) if norm else (block, Bottleneck)


def _after_mlp(at: Attachment, block: Site) -> Site:
    after = _inside(at, block, "after.mlp")
    if after is None:
        raise NoSuchSite(f"{block.path!r} ({type(block.module).__name__}) has no feed-forward network to follow")
    return after


def _inside(at: Attachment, block: Site, role: str) -> Site | None:
    """The site of that role in the block; None if it has none."""
    try:
        return next((s for s in at.sites(role) if s.path.startswith(block.path + ".")), None)
    except NoSuchSite:
        return None

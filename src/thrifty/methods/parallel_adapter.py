"""Scaled parallel adapter: Towards a Unified View of Parameter-Efficient Transfer Learning (He, Zhou, Ma, Berg-Kirkpatrick,
Neubig; ICLR 2022, arXiv:2110.04366)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core import Method, Site, need
from ..core.errors import NoSuchSite
from .bottleneck import ACTS, Beside, Tap

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class ParallelAdapter(Method):
    """FFN(x) + s (act(x W_d + b_d) W_u + b_u): the adapter reads what the feed-forward network reads, and adds to its output.

    It adds before the network's dropout, the residual and the normalisation. W_u starts at zero, W_d as in LoRA, so the
    model starts as the base. The paper's numbers: rank 16 and s = 2 for classification, 512 and 4 for generation.
    ``where`` names blocks; in a mixture of experts the adapter stands beside the whole mixture.
    """

    name = "parallel-adapter"
    aliases = ("scaled-parallel", "par_bn")
    route = "add modules"
    paper = "He et al., Towards a Unified View of Parameter-Efficient Transfer Learning, ICLR 2022, arXiv:2110.04366"
    trains = "one bottleneck beside each feed-forward network"
    inference = "one small network more per layer, beside the large one"
    rate = 1e-4

    rank: int = 16
    scale: float = 2.0
    act: str = "relu"
    dropout: float = 0.0
    where: str = "block"

    def check(self) -> None:
        """The activation is known, ranks are positive, dropout is a probability."""
        need(self.act in ACTS, self, "act", f"one of {sorted(ACTS)}")
        need(self.rank >= 1, self, "rank", "at least 1")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")

    def numbers(self, site: Site) -> dict[str, Any]:
        """As the settings say; the start is LoRA's."""
        return {"rank": self.rank, "act": self.act, "init": "zero", "std": 0.0, "scale": self.scale, "dropout": self.dropout}

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Per block a tap where the network's first layer reads and the adapter where its last one ends.

        Raises:
            NoSuchSite: a block has no feed-forward network.
        """
        first, last, whole, experts = (_by_block(at, role) for role in ("mlp.in", "mlp.out", "mlp", "experts"))
        for block in at.sites(self.where):
            path = block.path
            if len(first.get(path, [])) == len(last.get(path, [])) == 1 and path not in experts:
                (reads,), (ends,) = first[path], last[path]
                at.put(reads, Tap, key=reads.path)
                at.put(ends, Beside, key=reads.path, width=reads.din, **self.numbers(ends))
            elif len(whole.get(path, [])) == 1:
                (mlp,) = whole[path]
                at.put(mlp, Beside, key="", width=mlp.din, **self.numbers(mlp))
            else:
                raise NoSuchSite(f"{path!r} ({type(block.module).__name__}) has no feed-forward network to stand beside")


def _by_block(at: Attachment, role: str) -> dict[str, list[Site]]:
    """Path of a block -> its sites of that role."""
    found: dict[str, list[Site]] = {}
    try:
        sites = at.sites(f"{role}" if role == "experts" else f"{role}|!experts")
    except NoSuchSite:
        return found
    blocks = [b.path for b in at.sites("block")]
    for site in sites:
        for path in blocks:
            if site.path.startswith(path + "."):
                found.setdefault(path, []).append(site)
    return found

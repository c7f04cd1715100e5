"""MAM, the mix-and-match adapter: Towards a Unified View of Parameter-Efficient Transfer Learning (He, Zhou, Ma,
Berg-Kirkpatrick, Neubig; ICLR 2022, arXiv:2110.04366)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core import Method
from .parallel_adapter import ParallelAdapter
from .prefix import PrefixTuning, flatten

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class MAM(Method):
    """Few learned keys and values before every attention, and a scaled adapter beside every feed-forward network.

        K <- [P_k; K],  V <- [P_v; V],  FFN(x) + s (relu(x W_d + b_d) W_u + b_u)

    with P_k, P_v [length, d] made by a network of ``hidden`` units while training (thrown away at the end, exactly) and the
    adapter's W_d [d, rank], W_u [rank, d] starting as LoRA does. The prefix moves the model before the first step.

    The defaults are the paper's for classification; the preset "mam-generation" has those for summarisation and translation.
    ``attentions`` names those that get a prefix (empty: all, self and cross), ``blocks`` those that get an adapter.
    """

    name = "mam"
    aliases = ("mix-and-match",)
    presets = {"mam-generation": {"length": 30, "rank": 512, "scale": 4.0}}
    route = "add modules"
    paper = "He et al., Towards a Unified View of Parameter-Efficient Transfer Learning, ICLR 2022, arXiv:2110.04366"
    trains = "a short prefix of each attention and a bottleneck beside each feed-forward network"
    inference = "attention over `length` positions more, one small network more per layer"
    identity_at_start = False
    rate = 1e-4

    length: int = 16
    rank: int = 16
    scale: float = 2.0
    hidden: int = 800
    mlp: bool = True
    dropout: float = 0.0
    attentions: str = ""
    blocks: str = "block"

    @property
    def prefix(self) -> PrefixTuning:
        """The half at the attentions."""
        return PrefixTuning(length=self.length, mlp=self.mlp, hidden=self.hidden, dropout=self.dropout, where=self.attentions)

    @property
    def adapter(self) -> ParallelAdapter:
        """The half beside the feed-forward networks."""
        return ParallelAdapter(rank=self.rank, scale=self.scale, dropout=self.dropout, where=self.blocks)

    def check(self) -> None:
        """As both halves check theirs."""
        self.prefix.check()
        self.adapter.check()

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Prefixes first, then adapters."""
        self.prefix.attach(at, batches)
        self.adapter.attach(at, batches)

    def finish(self, at: Attachment) -> None:
        """Drop the network that makes the prefixes."""
        flatten(at)

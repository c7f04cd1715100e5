"""Adapters that hold knowledge: Common Sense or World Knowledge? Investigating Adapter-Based Knowledge Injection into Pretrained
Transformers (Lauscher, Majewska, Ribeiro, Gurevych, Rozanov, Glavaš; DeeLIO at EMNLP 2020, arXiv:2005.11787)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core import need
from .full import FullFineTuning
from .houlsby import Houlsby

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class KnowledgeAdapter(Houlsby):
    """Houlsby adapters, trained in two phases:

    1. ``tunes="adapters"``, the task "masked-language" on texts that say what should be known (`thrifty.data.walks` makes them
       from a graph of relations): adapters, normalisations and the head that guesses words train, all else is frozen.
    2. ``tunes="all"`` on the task itself, with ``start`` naming the adapter of the first phase: everything trains. That is
       what the paper does, so the method injects knowledge and does not save parameters; ``tunes="adapters"`` does both.

    The paper compares 25, 50 and 100 thousand steps of the first phase, of batches of 16 or 32.
    """

    name = "knowledge-adapter"
    aliases = ("retrograph",)
    presets = {}
    paper = "Lauscher et al., Common Sense or World Knowledge?, DeeLIO at EMNLP 2020, arXiv:2005.11787"
    trains = "two bottlenecks per layer and every normalisation on knowledge, then everything on a task"
    rate = 5e-5

    tunes: str = "adapters"

    def check(self) -> None:
        """As Houlsby's adapters; and it is said what trains."""
        super().check()
        need(self.tunes in ("adapters", "all"), self, "tunes", "'adapters' or 'all'")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """The adapters, and what trains in place."""
        super().attach(at, batches)
        if self.tunes == "all":
            FullFineTuning.make().attach(at, batches)

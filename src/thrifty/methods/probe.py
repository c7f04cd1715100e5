"""Linear probe: frozen features, a new head (Alain, Bengio: Understanding Intermediate Layers Using Linear Classifier Probes;
ICLR 2017 workshop, arXiv:1610.01644)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core import Method

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class LinearProbe(Method):
    """Only the head trains: y = W f(x) + b, with f frozen. The start is the head as the model has it."""

    name = "linear-probe"
    aliases = ("probe", "head")
    route = "few weights"
    paper = "Alain, Bengio, Understanding Intermediate Layers Using Linear Classifier Probes, ICLR-W 2017, arXiv:1610.01644"
    trains = "the head"
    inference = "none"
    rate = 1e-3

    where: str = "head"

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Claim the head's parameters."""
        at.train_matching(self.where)

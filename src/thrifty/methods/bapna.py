"""Adapters for machine translation: Simple, Scalable Adaptation for Neural Machine Translation (Bapna, Firat; EMNLP-IJCNLP
2019, arXiv:1909.08478)."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..core import Method, Site, need
from .branches.bottleneck import ACTS, Bottleneck


@dataclass
class Bapna(Method):
    """z + act(LN(z) W_bd) W_db after every layer of the encoder and of the decoder, z [tokens, d] being what it gives out.

    The normalisation is new and trains: a pre-norm layer gives out sums that nothing has normalised. The sum takes z as it
    is. W_bd [d, rank] starts as a linear layer does and W_db [rank, d] at zero, so that the model starts as the base; both
    have a bias unless ``bias`` is false, as in the paper's equation. ``rank`` is the knob for capacity: the paper goes from
    small ones for a domain up to 4096 for a language with much data. ``where`` names blocks.
    """

    name = "bapna"
    aliases = ("bapna-firat",)
    route = "add modules"
    modalities = ("text", "image")
    paper = "Bapna, Firat, Simple, Scalable Adaptation for Neural Machine Translation, EMNLP-IJCNLP 2019, arXiv:1909.08478"
    trains = "one normalised bottleneck after each layer"
    inference = "one small network more per layer"
    Edit = Bottleneck
    rate = 1e-3

    rank: int = 64
    act: str = "relu"
    bias: bool = True
    where: str = "block"

    def check(self) -> None:
        """The activation is known, the rank is positive."""
        need(self.act in ACTS, self, "act", f"one of {sorted(ACTS)}")
        need(self.rank >= 1, self, "rank", "at least 1")

    def numbers(self, site: Site) -> dict[str, Any]:
        """A bottleneck that starts as nothing, behind a normalisation."""
        return {"rank": self.rank, "act": self.act, "init": "zero", "std": 0.0, "norm": True, "bias": self.bias}

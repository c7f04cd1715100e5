"""LayerNorm tuning: Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning (Zhao, Tu, Wei, Mei, Xie;
ICLR 2024, arXiv:2312.11420)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core import Method

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class LayerNormTuning(Method):
    """gamma and beta of every normalisation train in place; statistics of batch norms stay as they are."""

    name = "layernorm"
    aliases = ("ln-tuning", "norm")
    route = "few weights"
    paper = "Zhao et al., Tuning LayerNorm in Attention, ICLR 2024, arXiv:2312.11420"
    trains = "scale and shift of every normalisation"
    inference = "none"
    rate = 1e-3

    where: str = "norm*"

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Claim the parameters of every site that is a normalisation."""
        at.train_matching(self.where, wildcard=True)

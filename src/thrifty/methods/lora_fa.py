"""LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning (Zhang, Zhang, Shi, Chu, Li; 2023,
arXiv:2308.03303)."""
from __future__ import annotations

from dataclasses import dataclass

from ..core import Method, Site, need, register
from .lora import LowRank


@register("low-rank-up")
class Up(LowRank):
    """y + s B A x, where A [rank, din] stays as it was drawn and B [dout, rank] trains.

    The gradient of B needs A x [..., rank] and nothing of the layer's width, so x is not kept for the backward pass, unless
    dropout is on: that keeps which of its entries were dropped.
    """

    def __init__(self, site: Site, rank: int, alpha: float, dropout: float = 0.0, stable: bool = False):
        super().__init__(site, rank, alpha, dropout, stable)
        frozen = self.B if self.kind == "embedding" else self.A  # of an embedding's update it is A that starts at zero
        frozen.requires_grad_(False)


@dataclass
class LoRAFA(Method):
    """LoRA with the down-projections frozen at their random start: half the parameters, and less to keep while training."""

    name = "lora-fa"
    route = "inject parameters"
    paper = "Zhang et al., LoRA-FA: Memory-efficient Low-rank Adaptation, 2023, arXiv:2308.03303"
    trains = "B [out, rank] beside each chosen weight, behind a random A [rank, in]"
    mergeable = True
    inference = "none once merged"
    Edit = Up
    rate = 1e-3

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    stable: bool = False
    where: str = "attn.q|attn.v"

    def check(self) -> None:
        """Ranks are positive, dropout is a probability."""
        need(self.rank >= 1, self, "rank", "at least 1")
        need(0 <= self.dropout < 1, self, "dropout", "in [0, 1)")

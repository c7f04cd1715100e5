"""BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models (Ben Zaken, Ravfogel, Goldberg;
ACL 2022, arXiv:2106.10199)."""
from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import Method, Site, base, need
from ..core.errors import Unfit
from ..core.roles import HEADS

if TYPE_CHECKING:
    from ..core import Attachment

# Whole leaf names: a substring would also catch T5's relative_attention_bias.weight, which is a table of positions.
# nn.MultiheadAttention and DeBERTa keep the biases of their fused projections under names of their own.
LEAVES = frozenset({"bias", "in_proj_bias", "q_bias", "v_bias"})
POOLER = re.compile(r"(^|\.)pooler\.(.*\.)?bias$")


@dataclass
class BitFit(Method):
    """y = x W + (b + delta): every bias trains in place, the beta of normalisations included, their gamma not.

    ``subset="query+intermediate"`` is the paper's smaller choice: the biases of the query projections and of the first
    feed-forward layer, and that of the pooler, which the paper's code always adds.
    """

    name = "bitfit"
    route = "few weights"
    paper = "Ben Zaken et al., BitFit, ACL 2022, arXiv:2106.10199"
    trains = "biases"
    inference = "none"
    rate = 1e-3

    subset: str = "all"

    def check(self) -> None:
        """The subset is one that the paper studies."""
        need(self.subset in ("all", "query+intermediate"), self, "subset", "'all' or 'query+intermediate'")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Claim the biases.

        Raises:
            Unfit: the model has none outside its head, or none at the places of the subset.
        """
        names = [n for n, _ in base.parameters(at.model) if n.rpartition(".")[2] in LEAVES]
        if not any(not HEADS.search(n) for n in names):
            raise Unfit(f"{type(at.model).__name__} has no biases (as T5 and LLaMA have none), so there is nothing for BitFit "
                        "to train: LayerNormTuning and IA3 are about as small")
        if self.subset == "all":
            for name in names:
                at.train(name, wildcard=True)
            return
        for site in at.sites("attn.q|mlp.in"):
            at.train(_bias_of(at, site), _mask(site), wildcard=True)
        for name in filter(POOLER.search, names):
            at.train(name, wildcard=True)


def _bias_of(at: Attachment, site: Site) -> str:
    name = f"{site.path}.bias"
    if name not in dict(at.model.named_parameters(remove_duplicate=False)):
        raise Unfit(f"{site.key!r} ({type(site.module).__name__}) has no bias of its own to train: use subset='all'")
    return name


def _mask(site: Site) -> Tensor | None:
    """The entries of a fused projection's bias that belong to the site."""
    if site.part is None:
        return None
    none = torch.zeros_like(site.module.get_parameter("bias"), dtype=torch.bool)
    return site.part.put(none, torch.ones_like(site.part.take(none)))

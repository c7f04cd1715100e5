"""LHUC: Learning Hidden Unit Contributions for Unsupervised Speaker Adaptation of Neural Network Acoustic Models
(Swietojanski, Renals; SLT 2014), brought to machine translation by Learning Hidden Unit Contribution for Adapting Neural
Machine Translation Models (Vilar; NAACL 2018)."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Method, Site, register
from .ia3 import Factors


@register("contribution")
class Contribution(Factors):
    """a = 2 sigmoid(w), between 0 and 2, with w [width]; w starts at zero, where a is one and changes nothing."""

    rowwise = True

    def __init__(self, site: Site, port: str):
        super().__init__(site, port)
        self.w = nn.Parameter(torch.zeros(self.width))

    def factors(self) -> Tensor:
        """a [width]."""
        return 2 * self.w.sigmoid()


@dataclass
class LHUC(Method):
    """h <- 2 sigmoid(w) * h: one learned contribution per feature of what each layer gives out, [tokens, d].

    That is after the residual sum, so nothing could be merged. ``where="mlp.out"`` scales the hidden units of the feed-forward
    networks where they enter the second layer, and merges into it; other sites are scaled where they give out.
    """

    name = "lhuc"
    route = "inject parameters"
    paper = "Swietojanski, Renals, Learning Hidden Unit Contributions, SLT 2014; Vilar, NAACL 2018"
    trains = "one contribution between 0 and 2 per feature of each layer"
    inference = "one multiplication per feature; none on hidden units once merged"
    Edit = Contribution
    rate = 1e-2

    where: str = "block"

    def numbers(self, site: Site) -> dict[str, Any]:
        """Hidden units are scaled at the input of the second layer, all else at the output."""
        return {"port": "input" if site.role == "mlp.out" else "output"}

"""Gates that learn to close: C. Louizos, M. Welling, D. P. Kingma, "Learning Sparse Neural Networks through L0 Regularization",
ICLR 2018, arXiv:1712.01312; their settling as M. Xia, Z. Zhong, D. Chen, "Structured Pruning Learns Compact and Accurate Models"
(CoFi), ACL 2022, arXiv:2204.00408, do it."""
from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LOW, HIGH = -0.1, 1.1       # of the interval that a draw is stretched to before it is cut to [0, 1]
TEMPERATURE = 2 / 3
OPEN = 10.0                 # where every gate begins
BOUNDS = (math.log(1e-2), math.log(1e2))
EDGE = 1e-6                 # of the uniform draw
SHARPNESS = 0.8             # of gates that are no longer drawn


class Gates(nn.Module):
    """n gates z in [0, 1] with log-odds a [n]:

        u ~ U(eps, 1 - eps),   z = clip(1.2 sigmoid((log u - log(1 - u) + a) / T) - 0.1, 0, 1),   T = 2/3
        P(z > 0) = sigmoid(a - T log(0.1 / 1.1))
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((size,), OPEN))

    def sample(self, u: Tensor | None = None) -> Tensor:
        """One draw z [n], of the uniform numbers ``u`` if they are given."""
        u = torch.empty_like(self.alpha).uniform_(EDGE, 1 - EDGE) if u is None else u
        soft = ((u.log() - (1 - u).log() + self.alpha) / TEMPERATURE).sigmoid()
        return (soft * (HIGH - LOW) + LOW).clamp(0, 1)

    def chance(self) -> Tensor:
        """P(z > 0) [n]."""
        return (self.alpha - TEMPERATURE * math.log(-LOW / HIGH)).sigmoid()

    @torch.no_grad()
    def settle(self) -> Tensor:
        """z [n] without chance: sigmoid(0.8 a / T), and 0 for as many of the smallest as are expected to be closed."""
        soft = (SHARPNESS * self.alpha / TEMPERATURE).sigmoid()
        closed = round(float((1 - self.chance()).sum()))
        soft[soft.argsort()[:closed]] = 0.0
        return soft

    @torch.no_grad()
    def clamp(self) -> None:
        """Log-odds back into their bounds, from where gradients can still move them."""
        self.alpha.clamp_(*BOUNDS)

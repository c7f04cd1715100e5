"""How small gates are expected to make a model, and the price of its not being small enough."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from thrifty.tinyclip.masks import Masks

START = 10.0  # of the multipliers


def expected_size(masks: Masks) -> tuple[Tensor, float]:
    """Numbers in the blocks of a tower that are expected to stay, and all of them, for states of width d, heads of width h and an
    inner width f:

        a head  4 h (d + 1)  (with H heads of h = d / H: (4 d² + 4 d) / H)        an inner unit  (2 d f + d + f) / f

    With gates on the states each is a sum over pairs, sum_i P(hidden_i) sum_j P(j) times the numbers of j for each hidden one, of
    which an inner unit then has 2. Gates on whole layers multiply the chances of what is in them.
    """
    width = masks.width
    expected, whole = torch.zeros(()), 0.0
    hidden = masks.chance("hidden")
    for layer in masks.layers:
        head = 4 * layer.head * (width + 1)
        whole += layer.heads * head
        unit = (2 * width * layer.inner + width + layer.inner) / layer.inner if layer.inner else 0.0
        whole += layer.inner * unit
        heads = masks.count(f"heads.{layer.place}", layer.heads) * masks.stays("attention", layer.place)
        inner = masks.count(f"inner.{layer.place}", layer.inner) * masks.stays("mlp", layer.place)
        if hidden is None:
            expected = expected + heads * head + inner * unit
        else:
            expected = expected + hidden.sum() * (heads * head / width + 2 * inner)
    return expected, whole


def sparsity(towers: Sequence[Masks]) -> Tensor:
    """1 - expected / all, over the blocks of these towers together."""
    sizes = [expected_size(masks) for masks in towers]
    return 1 - torch.stack([expected for expected, _ in sizes]).sum() / sum(whole for _, whole in sizes)


class Lagrangian(nn.Module):
    """l1 max(t - e, 0) + l2 max(t - e, 0)² for a sparsity e below its target t; more than is asked for costs nothing.

    l1, l2 [towers] begin at 10 and rise by gradient ascent. Of several towers that are judged together the means count.
    """

    def __init__(self, towers: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.full((towers,), START))
        self.second = nn.Parameter(torch.full((towers,), START))

    def forward(self, towers: Sequence[Masks], target: float, joint: bool) -> Tensor:
        """The price of all towers, together (``joint``) or each for itself."""
        if joint:
            gap = (target - sparsity(towers)).clamp(min=0)
            return self.first.mean() * gap + self.second.mean() * gap**2
        gaps = torch.stack([(target - sparsity([masks])).clamp(min=0) for masks in towers])
        return (self.first * gaps + self.second * gaps**2).sum()


def ramp(target: float, step: int, over: int) -> float:
    """The target at a step (counted from 0), which rises from 0 in ``over`` steps."""
    return target * min(1.0, (step + 1) / over) if over else target

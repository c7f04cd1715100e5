"""Weights of few distinct values, by k-means: Deep Compression (Han, Mao, Dally; ICLR 2016, arXiv:1510.00149), as TinyTL (Cai,
Gan, Zhu, Han; NeurIPS 2020, arXiv:2007.11622) holds what it does not train."""
from __future__ import annotations

import torch
from torch import Tensor, nn

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@torch.no_grad()
def quantise(model: nn.Module, bits: int = 8, steps: int = 20) -> None:
    """Give the weight of every convolution and linear layer of ``model`` at most 2^bits distinct values, layer by layer.

    To be called before a method is attached, and again on the base before an adapter made on it is loaded: the model that
    it leaves is another base.
    """
    for module in model.modules():
        if isinstance(module, LAYERS):
            module.weight.copy_(cluster(module.weight, 1 << bits, steps))


def cluster(weight: Tensor, count: int, steps: int = 20) -> Tensor:
    """Every entry replaced by the nearest of ``count`` centres, which start at quantiles and are moved ``steps`` times (Lloyd)."""
    flat = weight.detach().flatten().double()
    values = flat.sort().values
    if len(distinct := values.unique_consecutive()) <= count:
        return weight.detach().clone()
    centres = values[torch.linspace(0, len(values) - 1, count, device=values.device).round().long()].unique_consecutive()
    for _ in range(steps):
        near = torch.bucketize(distinct, (centres[1:] + centres[:-1]) / 2)
        weights = torch.searchsorted(values, distinct, right=True) - torch.searchsorted(values, distinct)
        total = torch.zeros_like(centres).index_add(0, near, distinct * weights)
        mass = torch.zeros_like(centres).index_add(0, near, weights.double())
        centres = torch.where(mass > 0, total / mass.clamp_min(1), centres)
    near = torch.bucketize(flat, (centres[1:] + centres[:-1]) / 2)
    return centres[near].to(weight.dtype).view(weight.shape)

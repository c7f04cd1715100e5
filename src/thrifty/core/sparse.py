"""Sparse: which entries of a base parameter may train, as a mask in memory and as a list of positions in a file."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from .errors import BrokenArtifact


class Masked:
    """Keeps the gradient of masked entries only; an object, so that a model that holds it can be pickled."""

    def __init__(self, mask: Tensor):
        self.mask = mask

    def __call__(self, grad: Tensor) -> Tensor:
        return grad * self.mask


def hold(parameter: nn.Parameter, mask: Tensor) -> None:
    """Let gradients into the entries of ``mask`` alone. Said twice, as of a copy that lost its hooks, it holds once."""
    hooks = parameter._backward_hooks or {}
    if not any(isinstance(hook, Masked) for hook in hooks.values()):
        parameter.register_hook(Masked(mask))


def positions(mask: Tensor) -> Tensor:
    """Where ``mask`` is true, counted along the flattened tensor, in order; of the smaller whole numbers if they suffice."""
    found = mask.flatten().nonzero().flatten()
    return found.to(torch.int32) if mask.numel() < 1 << 31 else found


def mask_at(where: Tensor, like: Tensor, name: str) -> Tensor:
    """The mask, shaped as ``like``, that is true at the positions ``where``.

    Raises:
        BrokenArtifact: they are no positions of such a tensor in rising order.
    """
    whole = where.dtype in (torch.int32, torch.int64) and where.dim() == 1
    if not whole or len(where) and (int(where[0]) < 0 or int(where[-1]) >= like.numel() or bool((where.diff() <= 0).any())):
        raise BrokenArtifact(f"what trains of {name!r} is not given by rising positions in its {like.numel()} entries")
    mask = torch.zeros(like.numel(), dtype=torch.bool, device=like.device)
    mask[where.to(like.device, torch.long)] = True
    return mask.view(like.shape)

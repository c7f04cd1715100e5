"""Batch norms that normalise by the batch at hand, as they do in training, without keeping anything of it."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def by_batch(model: nn.Module) -> Iterator[None]:
    """While it lasts, every batch norm of ``model`` normalises by its batch. Its running statistics are neither read nor moved."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
    kept = [(module, module.running_mean, module.running_var) for module in norms]
    for module in norms:
        module.running_mean = module.running_var = None  # without them torch takes the batch's own
    try:
        yield
    finally:
        for module, mean, var in kept:
            module.running_mean, module.running_var = mean, var

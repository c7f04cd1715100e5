"""Floating-point operations, counted while a model runs and not from a formula: what was not computed is not counted."""
from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def flops(model: nn.Module, batch: dict[str, Any]) -> int:
    """Operations of ``model(**batch)`` in evaluation mode, without gradients, as torch counts them.

    Counted are products of matrices and convolutions, with two operations for each multiplication and addition; attention too.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(**batch)
    finally:
        model.train(training)
    return int(counter.get_total_flops())


def mean_flops(model: nn.Module, batch: dict[str, Any]) -> float:
    """Operations for a picture, on average over those of a batch, each of which is run alone."""
    size = len(next(iter(batch.values())))
    return sum(flops(model, {name: value[i : i + 1] for name, value in batch.items()}) for i in range(size)) / size

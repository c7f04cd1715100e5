"""Which of several texts does a language model find the likeliest behind a prompt?"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.core.errors import BadData
from thrifty.tasks.generation import Generation
from thrifty.tasks.task import Batch, predicting

Example = dict[str, Any]


def log_likelihoods(writer: Generation, model: nn.Module, rows: Sequence[Sequence[Example]], size: int,
                    mean: bool) -> list[list[float]]:
    """log p(target | prompt) of every example of every row, summed over the target's tokens or their mean.

    An example is a prompt joined with a target by ``writer``; ``size`` examples go through the model at once.

    Raises: BadData for a likelihood that is not finite.
    """
    flat = [example for row in rows for example in row]
    device = next(model.parameters()).device
    order = sorted(range(len(flat)), key=lambda i: len(flat[i]["input_ids"]))
    scores = [0.0] * len(flat)
    with predicting(model):
        for start in range(0, len(flat), size):
            chosen = order[start:start + size]
            batch = to(writer.collate([flat[i] for i in chosen]), device)
            losses, wanted = writer.token_losses(model, batch)
            summed, counts = losses.double().sum(dim=1), wanted.sum(dim=1)
            for i, score in zip(chosen, (-summed / counts if mean else -summed).tolist(), strict=True):
                if not math.isfinite(score):
                    raise BadData("the likelihood of an answer is not finite; the model or its precision has overflowed.")
                scores[i] = score
    found = iter(scores)
    return [[next(found) for _ in row] for row in rows]


def shares(scores: Sequence[float]) -> list[float]:
    """Log-likelihoods as probabilities among the options of one row."""
    return torch.tensor(scores, dtype=torch.float64).softmax(dim=0).tolist()


def to(batch: Batch, device: torch.device) -> Batch:
    """The tensors of a batch on ``device``."""
    return {key: value.to(device) for key, value in batch.items() if isinstance(value, Tensor)}

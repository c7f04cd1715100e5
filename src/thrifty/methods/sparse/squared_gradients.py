"""Squared gradients of the loss: how much each weight of a frozen model matters to a task, before anything has trained.

Over rows they are the diagonal of the empirical Fisher information, by which LST (Sung, Cho, Bansal; NeurIPS 2022,
arXiv:2206.06522) prunes; over batches the sensitivity of SPT (He, Cai, Zhang, Tao, Zhuang; ICCV 2023, arXiv:2303.08566).
"""
from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core import Site
from ...core.errors import ThriftyError, Unfit
from ...core.hooks import main
from ...core.ledger import canonical
from ...core.weight import is_quantised

Batch = Mapping[str, Tensor]


def squared_gradients(model: nn.Module, own: Mapping[str, nn.Parameter], batches: Iterable[Batch], most: int,
                      remedy: str = "") -> dict[str, Tensor]:
    """The sum over up to ``most`` batches of (d loss / d w)², for each of the parameters ``own``; without dropout, in float32.

    ``remedy`` ends the messages of errors.

    Raises:
        ThriftyError: the model gives no loss for a batch, or there is none. Unfit: a quantised model has no such gradients.
    """
    if any(is_quantised(m) for m in model.modules()):
        raise Unfit(f"the weights of a quantised {type(model).__name__} have no gradients to be weighed by{remedy}")
    sums = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in own.items()}
    wanted, modes, done = {n: p.requires_grad for n, p in own.items()}, [(m, m.training) for m in model.modules()], 0
    try:
        model.eval()
        for p in own.values():
            p.requires_grad_(True)
        for batch in batches:
            loss = loss_of(model, batch)
            if loss is None:
                raise ThriftyError(f"{type(model).__name__} gives no loss for a batch of {sorted(batch)}, by which its weights "
                                   f"would be weighed: give labels with the batches{remedy}")
            for name, grad in zip(own, torch.autograd.grad(loss, list(own.values()), allow_unused=True), strict=True):
                if grad is not None:
                    sums[name] += grad.float().square()
            done += 1
            if done == most:
                break
    finally:
        for n, p in own.items():
            p.requires_grad_(wanted[n])
        for module, mode in modes:
            module.training = mode
    if not done:
        raise ThriftyError("there is no row of data by which weights could be weighed: attach with batches=, dicts of tensors with "
                           f"labels{remedy}")
    return sums


def loss_of(model: nn.Module, batch: Batch) -> Tensor | None:
    """The model's own loss, or where it computes none the mean cross-entropy of its logits [..., classes] for labels [...].

    None where neither is to be had.
    """
    labels = batch.get("labels")
    if labels is None:
        return None
    if "labels" in inspect.signature(model.forward).parameters:
        own: Tensor | None = model(**batch)["loss"]
        return own
    logits = main(model(**{name: value for name, value in batch.items() if name != "labels"}))
    if labels.is_floating_point() or logits.shape[:-1] != labels.shape:
        return None
    return F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())


def of_weight(sums: Mapping[str, Tensor], model: nn.Module, site: Site) -> Tensor:
    """What ``sums`` holds for the weight of a site, in the site's own order [dout, din, ...].

    Raises:
        Unfit: the weight is a piece of a larger parameter.
    """
    if "weight" not in dict(site.module.named_parameters(recurse=False)):
        raise Unfit(f"the weight of {site.path!r} ({type(site.module).__name__}) is a piece of a larger parameter, whose gradient "
                    "is not divided here")
    summed = sums[canonical(model, f"{site.path}.weight")]
    summed = summed.T if isinstance(site.module, nn.Embedding) or hasattr(site.module, "nf") else summed
    return site.part.take(summed, 0) if site.part else summed

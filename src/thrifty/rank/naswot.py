"""NASWOT: how differently a network's units respond to different inputs, without training and without labels.

J. Mellor, J. Turner, A. Storkey and E. J. Crowley, "Neural architecture search without training", ICML 2021, arXiv 2006.04647;
the variant of X. Yang, D. Zhou, S. Liu, J. Ye and X. Wang, "Deep model reassembly", NeurIPS 2022, arXiv 2210.17409.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from thrifty.core.errors import BadData, NoSuchSetting, Unfit, nearest
from thrifty.rank.reading import Array
from thrifty.rank.score import Score

if TYPE_CHECKING:
    from torch import Tensor, nn

VARIANTS = ("original", "dery")
_ACTIVATIONS = ("ReLU", "GELU", "Hardswish", "ELU", "SELU", "Mish")
_RIDGE = 1e-6


def naswot(model: nn.Module, batches: Iterable[Any], variant: str = "original") -> Score:
    """The mean over ``batches`` of log |det K|, with K_ij the number of units that agree on inputs i and j.

    A unit's code is whether its value is above 0. "original" counts what enters modules whose class is named ReLU (ReLU, PReLU,
    ...); "dery" what leaves these, GELU, Hardswish, ELU, SELU, Mish, Linear, Dropout and (innermost) attention modules, and
    divides by the number of inputs. ``batches`` hold keyword arguments (a dict), positional ones (a tuple) or a tensor, with
    inputs along the first axis. Unbounded; scores compare for equal batch sizes. Inputs with the same codes make K singular:
    1e-6 of its mean diagonal is then added to it, and ``details["singular"]`` counts such batches. O(B^2 M) for M units.

    Raises:
        BadData: no batches.
        NoSuchSetting: an unknown variant.
        Unfit: the model has, or runs, no module that counts.
    """
    if variant not in VARIANTS:
        raise NoSuchSetting(f"no variant={variant!r}.{nearest(variant, VARIANTS)}")
    scores, singular = [], 0
    for batch in batches:
        kernel = agreement(model, batch, variant)
        value = _log_determinant(kernel)
        if not np.isfinite(value):
            singular += 1
            value = _log_determinant(kernel + np.eye(len(kernel)) * _RIDGE * np.trace(kernel) / len(kernel))
        scores.append(value / len(kernel) if variant == "dery" else value)
    if not scores:
        raise BadData("naswot needs at least one batch.")
    return Score(float(np.mean(scores)), batches=len(scores), singular=singular)


def agreement(model: nn.Module, batch: Any, variant: str = "original") -> Array:
    """K [B, B] of one batch; its diagonal is the number of units counted.

    Raises:
        Unfit: the model has, or runs, no module that counts.
    """
    import torch

    counted = [module for module in model.modules() if _counts(module, variant)]
    if not counted:
        raise Unfit(f"{type(model).__name__} has no module that NASWOT's variant {variant!r} counts; the variants are {VARIANTS}.")
    given = list(batch.values()) if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else [batch]
    count = len(given[0])
    found: list[Array] = []

    def note(value: Any) -> None:
        first = value[0] if isinstance(value, tuple | list) else value
        if len(first) % count:
            raise Unfit(f"a module of {type(model).__name__} sees {list(first.shape)}, which {count} inputs do not divide.")
        found.append(count_agreements(first.reshape(count, -1)))  # windows of one input lie side by side

    modes = {module: module.training for module in model.modules()}
    hooks = [m.register_forward_hook(lambda _, inputs, output: note(inputs if variant == "original" else output)) for m in counted]
    try:
        model.eval()
        with torch.no_grad():
            model(**batch) if isinstance(batch, Mapping) else model(*given)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    if not found:
        raise Unfit(f"{type(model).__name__} runs none of its {len(counted)} modules that NASWOT's variant {variant!r} counts.")
    total: Array = np.sum(found, axis=0)
    return total


def count_agreements(values: Tensor) -> Array:
    """c c' + (1 - c)(1 - c)' for the codes c [B, M] = values [B, ...] > 0."""
    import torch

    codes = (values.detach().flatten(1) > 0).to(torch.float32)
    total = torch.zeros(len(codes), len(codes), dtype=torch.float64)
    for part in codes.split(1 << 22, dim=1):  # float32 counts exactly up to 2^24
        total += (part @ part.T + (1 - part) @ (1 - part).T).double().cpu()
    counts: Array = total.numpy()
    return counts


def _counts(module: nn.Module, variant: str) -> bool:
    name = type(module).__name__
    if variant == "original":
        return "ReLU" in name
    if "Attention" in name:
        return not any("Attention" in type(inner).__name__ for inner in module.modules() if inner is not module)
    return any(kind in name for kind in _ACTIVATIONS) or name in ("Linear", "Dropout")


def _log_determinant(matrix: Array) -> float:
    sign, value = np.linalg.slogdet(matrix)
    rank = np.linalg.matrix_rank(matrix)
    return float(value) if sign > 0 and rank == len(matrix) else -np.inf

"""The frozen weights of a model in four bits.

QLoRA: Efficient Finetuning of Quantized LLMs (Dettmers, Pagnoni, Holtzman, Zettlemoyer; NeurIPS 2023, arXiv:2305.14314): the 4-bit
NormalFloat with double quantisation, 4.127 bits a weight. What acts beside the weights trains on such a model as on any other.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from thrifty.core.errors import Missing, Unfit

WEIGHTS = ("full", "nf4")


@torch.no_grad()
def quantise(model: nn.Module, keep: Iterable[str] = ()) -> list[str]:
    """Hold the weights of the linear layers of ``model`` in four bits, in place, and all else in float32; returns their paths.

    As the authors do, what turns states into words or classes stays as it is, and so do norms and embeddings; so do layers named
    in ``keep`` (by a path, or by that of a parameter), those that the architecture wants in full precision, and those whose weight
    has another place in the model. Layers are turned one by one: beside the model itself that takes one weight's memory.

    Raises: Missing without bitsandbytes; Unfit for a model without a linear layer to turn.
    """
    found = turn(model, keep, _import().pack)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    return found


def turn(model: nn.Module, keep: Iterable[str], pack: Callable[[Any], nn.Module]) -> list[str]:
    """Put what ``pack`` makes of each layer that is to be held in four bits into its place; returns their paths.

    Raises: Unfit where there is none.
    """
    found = choose(model, keep)
    if not found:
        raise Unfit(f"{type(model).__name__} has no linear layer that could be held in four bits")
    for path in found:
        put(model, path, pack(model.get_submodule(path)))
    return found


def choose(model: nn.Module, keep: Iterable[str] = ()) -> list[str]:
    """Paths of the layers that `quantise` turns: plain linear ones of the trunk, whose weight nobody else holds."""
    trunk: Any = getattr(model, "base_model", model)
    words: Any = getattr(model, "get_output_embeddings", lambda: None)()
    wide = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    kept = {name.removesuffix(".weight").removesuffix(".bias") for name in keep}
    held = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    inside = {id(module) for module in trunk.modules()}
    return [path for path, module in model.named_modules() if type(module) is nn.Linear and id(module) in inside
            and module is not words and path not in kept and not wide & set(path.split(".")) and held[id(module.weight)] == 1]


@torch.no_grad()
def dequantise(model: nn.Module) -> list[str]:
    """Give ``model`` dense layers, in place, with the numbers that its four bits stand for; returns their paths.

    Raises: Missing without bitsandbytes.
    """
    nf4 = _import()
    found = [path for path, module in model.named_modules() if isinstance(module, nf4.Linear4bit)]
    for path in found:
        put(model, path, nf4.unpack(model.get_submodule(path)))
    return found


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """``module`` in the place of what stands at ``path``."""
    holder, _, name = path.rpartition(".")
    setattr(model.get_submodule(holder), name, module)


def _import() -> Any:
    try:
        from thrifty.models import nf4
    except ImportError as error:
        raise Missing('weights in four bits need bitsandbytes: pip install "thrifty[quantised]"') from error
    return nf4

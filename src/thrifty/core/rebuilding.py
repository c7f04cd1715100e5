"""What is held for the backward pass in the place of a tensor: the tensor itself, or how to compute it again."""
from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .drawing import is_fake

PLAIN = (Tensor, nn.Parameter)  # or a fake one of torch, which stands for one of these


class Whole:
    """The tensor as it was, and an error if it is not any more."""

    def __init__(self, t: Tensor) -> None:
        self.kept = t if t.is_leaf else t.detach()  # a leaf itself: where weights are spread, its memory comes and goes
        self.version = t._version

    def tensor(self) -> Tensor:
        """The tensor.

        Raises:
            RuntimeError: it was changed in place since, as torch itself would say.
        """
        if self.kept._version != self.version:
            raise RuntimeError(f"a tensor {list(self.kept.shape)} needed for gradient computation has been modified by an inplace "
                               f"operation: it is at version {self.kept._version}, expected {self.version}")
        return self.kept


class Mask:
    """What dropout multiplied by, zero or 1 / (1 - p), of which one byte per number says which."""

    def __init__(self, t: Tensor, p: float) -> None:
        self.kept, self.value = t != 0, torch.ones((), dtype=t.dtype, device=t.device).div_(1 - p)

    def tensor(self) -> Tensor:
        """The mask as it was, bit for bit."""
        return self.kept * self.value


class Recipe:
    """func(*args, **kwargs), computed when it is first asked for; what was tensors among the arguments is held in turn.

    The result stays as long as the recipe does, which is as long as anybody may still ask. ``multiplies`` says that a matrix
    product is among what must be computed.
    """

    def __init__(self, func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor,
                 multiplies: bool) -> None:
        self.func, self.args, self.kwargs, self.multiplies = func, args, kwargs, multiplies
        self.layout, self.device = (y.size(), y.stride()), y.device.type
        self.cast = _autocast(self.device)
        self.made: Tensor | None = None

    def value(self) -> Tensor:
        """What the function gave, in the precision in which it was asked for."""
        if self.made is None:
            args = [a.tensor() if isinstance(a, HELD) else a for a in self.args]
            kwargs = {k: a.tensor() if isinstance(a, HELD) else a for k, a in self.kwargs.items()}
            enabled, dtype = self.cast
            same = _autocast(self.device)[0] == enabled and not enabled
            with torch.no_grad(), contextlib.nullcontext() if same else torch.autocast(self.device, dtype, enabled, False):
                self.made = self.func(*args, **kwargs)
            if self.made.stride() != self.layout[1]:
                self.made = torch.empty_strided(*self.layout, dtype=self.made.dtype, device=self.made.device).copy_(self.made)
        return self.made


class View:
    """Some of a recipe's result, as it lies in memory there."""

    def __init__(self, recipe: Recipe, t: Tensor) -> None:
        self.recipe, self.place = recipe, (t.size(), t.stride(), t.storage_offset())

    def tensor(self) -> Tensor:
        """The tensor, computed again if need be."""
        return self.recipe.value().as_strided(*self.place)


Held = Whole | Mask | View
HELD = (Whole, Mask, View)


def regular(t: Any) -> bool:
    """Whether ``t`` is a tensor of torch's own that lies in memory in strides, and so can be known by its memory."""
    return is_plain(t) and t.layout is torch.strided and not t.is_nested and not t.is_inference()


def is_plain(t: Any) -> bool:
    """Whether ``t`` is a tensor of torch's own, and no class that wraps some."""
    return type(t) in PLAIN or is_fake(t)


def _autocast(device: str) -> tuple[bool, torch.dtype | None]:
    if not torch.amp.is_autocast_available(device):
        return False, None
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

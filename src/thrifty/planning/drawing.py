"""Drawing: a copy of a model with every shape and no numbers, which trains on any device without memory."""
from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode


def paper() -> FakeTensorMode:
    """What drawings are made and run on. Tensors with numbers that meet them there become drawings too."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def draw(model: nn.Module, mode: FakeTensorMode, device: torch.device) -> Any:
    """A copy of ``model`` (on the meta device, or with numbers) as if it were on ``device``. Tied tensors stay tied."""
    drawn: dict[int, Any] = {}
    with mode:
        for tensor in _tensors(model):
            if id(tensor) not in drawn:
                empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
                drawn[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, drawn)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and tensors that modules hold as plain attributes."""
    for module in model.modules():
        held = (*module._parameters.values(), *module._buffers.values(), *module.__dict__.values())
        yield from (value for value in held if isinstance(value, Tensor))

"""How much memory training keeps between the forward and the backward pass: a model of it, and what is kept in fact.

The model is that of TinyTL's profiler: TinyTL: Reduce Memory, Not Parameters for Efficient On-Device Learning (Cai, Gan, Zhu,
Han; NeurIPS 2020, arXiv:2007.11622). It charges nothing for a frozen normalisation. That is right for a batch normalisation
with fixed statistics, but not for a group or layer normalisation, which need their input; hence the measurement beside it.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...core.hooks import main
from ...core.probe import Example

BYTES = 4  # of an activation
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BITS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)  # one bit a number is enough for their backward pass
CURVES = (nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.GELU, nn.SiLU)


@dataclass(frozen=True)
class Memory:
    """Bytes of one sample: what is ``stored`` for the backward pass, by layer, and the ``peak`` with what is computed meanwhile.

    ``trainable`` and ``frozen`` count parameters.
    """

    stored: dict[str, int]
    peak: int
    trainable: int
    frozen: int

    @property
    def activations(self) -> int:
        """Bytes stored in all layers together."""
        return sum(self.stored.values())

    def total(self, batch: int, bits: int = 32) -> int:
        """Bytes in all: the activations of ``batch`` samples, the trained parameters, and the frozen ones in ``bits`` bits."""
        return batch * self.peak + BYTES * self.trainable + bits * self.frozen // 8


def predict(model: nn.Module, example: Example, residual: Iterable[nn.Module] = ()) -> Memory:
    """The memory model, from one run on ``example``, a batch of one sample, with what trains as it is now.

        convolution, linear, normalisation     stores its input if its weight trains
        ReLU and its kin                       stores a bit per number, smooth activations all of their input, if it has a gradient
        peak = max over layers of what the layer holds (convolution |x| + |y| / groups, linear |x| + |y|, else |x|), the input
               of the ``residual`` block around it, and all that was stored up to it
    """
    meter = _Meter()
    names = {module: path for path, module in model.named_modules()}
    handles = [module.register_forward_hook(meter.layer(names[module])) for module in model.modules() if _kind(module)]
    for block in residual:
        handles += [block.register_forward_pre_hook(meter.enter), block.register_forward_hook(meter.leave)]
    modes = {m: m.training for m in model.modules()}
    try:
        with torch.enable_grad():
            _call(model.eval(), example)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    count = [sum(p.numel() for p in model.parameters() if p.requires_grad == trains) for trains in (True, False)]
    return Memory(meter.stored, meter.peak, *count)


def measure(model: nn.Module, run: Callable[[], Any]) -> int:
    """Bytes that autograd keeps while ``run`` computes, each piece of memory once, without the model's own tensors."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # holds them, so that none is freed and its place taken by the next

    def keep(t: Tensor) -> Tensor:
        kept.setdefault(t.untyped_storage().data_ptr(), t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        result = run()
    del result
    return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in own)


class _Meter:
    """Adds up, layer by layer, as the model runs."""

    def __init__(self) -> None:
        self.stored: dict[str, int] = {}
        self.peak, self.blocks = 0, [0]

    def layer(self, name: str) -> Callable[..., None]:
        """A hook for the layer of that name."""
        def hook(module: Any, args: tuple[Tensor, ...], out: Any) -> None:
            x, y, kind = args[0], main(out), _kind(module)
            holds = x.numel() + (y.numel() // getattr(module, "groups", 1) if kind in ("convolution", "linear") else 0)
            held = BYTES * holds + self.blocks[-1] + sum(self.stored.values())
            self.peak = max(self.peak, held)
            self.stored[name] = self.stored.get(name, 0) + _stores(module, kind, x)
        return hook

    def enter(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """A residual block begins, and keeps what it was given."""
        self.blocks.append(BYTES * args[0].numel())

    def leave(self, module: nn.Module, args: Any, out: Any) -> None:
        """It ends."""
        self.blocks.pop()


def _kind(module: nn.Module) -> str:
    if isinstance(module, CONVOLUTIONS):
        return "convolution"
    if isinstance(module, nn.Linear):
        return "linear"
    if "Norm" in type(module).__name__ and next(module.parameters(recurse=False), None) is not None:
        return "normalisation"
    if isinstance(module, BITS):
        return "bits"
    return "curve" if isinstance(module, CURVES) or "GELU" in type(module).__name__ else ""


def _stores(module: Any, kind: str, x: Tensor) -> int:
    if kind in ("bits", "curve"):
        return 0 if not x.requires_grad else x.numel() // 8 if kind == "bits" else BYTES * x.numel()
    weight = getattr(module, "weight", None)
    return BYTES * x.numel() if weight is not None and weight.requires_grad else 0


def _call(model: nn.Module, example: Example) -> Any:
    if isinstance(example, dict):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)

"""What networks cost, found by running them on shapes alone, and limits on that."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..core.errors import Unfit
from ..core.hooks import main

Shape = tuple[int, ...]  # of one picture's map [C, h, w] or tokens [n, C]
MILLION, BILLION = 10**6, 10**9


class Measure:
    """Runs modules on shapes, and counts operations: multiplications, each with its addition, in products and convolutions."""

    def __init__(self) -> None:
        self.drawn: dict[nn.Module, dict[str, Tensor]] = {}
        self.known: dict[tuple[tuple[nn.Module, ...], Shape], tuple[int, Shape]] = {}

    def through(self, modules: Sequence[nn.Module], shape: Shape) -> tuple[int, Shape]:
        """``run``, once for each size."""
        key = tuple(modules), shape
        if key not in self.known:
            self.known[key] = self.run(modules, shape)
        return self.known[key]

    def run(self, modules: Sequence[nn.Module], shape: Shape) -> tuple[int, Shape]:
        """Operations of ``modules``, one behind the other, for one picture that comes in this shape; and its shape behind."""
        modes = {inner: inner.training for module in modules for inner in module.modules()}
        x = torch.empty(1, *shape, device="meta")
        try:
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                for module in modules:
                    x = main(functional_call(module.eval(), self.shapes(module), (x,)))
        finally:
            for inner, mode in modes.items():
                inner.training = mode
        return int(counter.get_total_flops()) // 2, tuple(x.shape[1:])

    def shapes(self, module: nn.Module) -> dict[str, Tensor]:
        """A module's tensors without their numbers."""
        if module not in self.drawn:
            held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            self.drawn[module] = {
                name: torch.empty_like(t, device="meta", dtype=torch.float32 if t.is_floating_point() else t.dtype)
                for name, t in held.items()}
        return self.drawn[module]


def refuse_beyond(name: str, params: float, flops: float, parameters: int, operations: int) -> None:
    """Refuse a network of more than ``params`` million parameters, or ``flops`` billion operations for a picture; 0 is no limit.

    Raises:
        Unfit: saying what it has.
    """
    if params and parameters > params * MILLION:
        raise Unfit(f"{name} would have {parameters / MILLION:.4g} M parameters here, more than params={params:g}")
    if flops and operations > flops * BILLION:
        raise Unfit(f"{name} would need {operations / BILLION:.4g} G operations for a picture here, more than flops={flops:g}")

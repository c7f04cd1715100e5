"""The gates of diff pruning (Guo, Rush, Kim; ACL 2021, arXiv:2012.07463), hard-concrete as in Learning Sparse Neural Networks
through L0 Regularization (Louizos, Welling, Kingma; ICLR 2018, arXiv:1712.01312)."""
from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ...core import Edit, Site, register
from ...core.errors import CannotMerge, Unfit
from ...core.ledger import merged
from ...core.merging import touched

EDGE = 1e-4  # noise keeps this far from 0 and 1


def gate(alpha: Tensor, u: Tensor | None, low: float, high: float, temperature: float) -> Tensor:
    """z in [0, 1], shaped as ``alpha``: the stretched and clamped sigmoid of alpha with logistic noise from u in (0, 1).

        s = sigmoid((log u - log(1 - u) + alpha) / temperature),   z = min(1, max(0, s (high - low) + low))

    Without u the gate is what stands for it at inference: s = sigmoid(alpha).
    """
    if u is not None:
        u = u.clamp(EDGE, 1 - EDGE)
        alpha = (u.log() - (1 - u).log() + alpha) / temperature
    return (alpha.sigmoid() * (high - low) + low).clamp(0, 1)


@register("diff-gates")
class Gates(Edit):
    """theta = theta_0 + z w for each of the base parameters ``names``, with w and z of its shape, written before the model runs.

    z is a ``gate`` with an alpha of its own per entry, times one per parameter if ``structured``. In training it is sampled
    at every forward pass. w starts at zero, every alpha at ``start``. The base parameters hold theta; what arrives at them in
    the backward pass goes on to w and alpha, and nothing stays.
    """

    port = "call"

    def __init__(self, site: Site, names: list[str], structured: bool, start: float, low: float, high: float, temperature: float):
        super().__init__(site)
        self.names, self.numbers = names, (low, high, temperature)
        shapes = [site.module.get_parameter(name).shape for name in names]
        self.w = nn.ParameterList(torch.zeros(shape) for shape in shapes)
        self.alpha = nn.ParameterList(torch.full(shape, start) for shape in shapes)
        self.group = nn.Parameter(torch.full((len(names),), start)) if structured else None

    def forward(self, args: Any, kwargs: Any) -> Any:
        """All arguments of the model, as they are."""
        self.write()
        return args, kwargs

    def write(self) -> None:
        """Put theta into the base parameters.

        Raises:
            CannotMerge: another adapter is merged into one of them, and would be lost.
            Unfit: a training with several processes, each of which would draw gates of its own.
        """
        root, at = self.site.module, self.context.home
        above = next((a.name for a in merged(root) if touched(a) & at.base.keys()), None)
        if above is not None:
            raise CannotMerge(f"diff pruning writes the weights that {above!r} is merged into: unmerge it first")
        for handle in self.context.taps.pop("arrivals", ()):
            handle.remove()
        self.context.taps["arrivals"] = arrivals = []
        for i, name in enumerate(self.names):
            parameter = root.get_parameter(name)
            theta = at.base[name].to(self.w[i].dtype) + self.change(i)
            with torch.no_grad():
                parameter.copy_(theta)
            if theta.requires_grad:
                arrivals.append(parameter.register_post_accumulate_grad_hook(Arrival(theta)))
        if arrivals and torch.distributed.is_available() and torch.distributed.is_initialized() \
                and torch.distributed.get_world_size() > 1:
            raise Unfit("diff pruning samples its gates in one process: train it in one, or only its second phase in several")

    def change(self, i: int, u: Tensor | None = None, u_group: Tensor | None = None) -> Tensor:
        """z w of the i-th parameter; with noise that is given, or drawn in training."""
        alpha = self.alpha[i]
        z = gate(alpha, torch.rand_like(alpha) if self.training and u is None else u, *self.numbers)
        if self.group is not None:
            one = self.group[i]
            z = z * gate(one, torch.rand_like(one) if self.training and u_group is None else u_group, *self.numbers)
        return z * self.w[i]

    def expected(self, product: bool) -> Tensor:
        """The expected number of entries that change: per parameter P(group) · sum P(entry), or the two sums side by side."""
        low, high, temperature = self.numbers
        shift = temperature * math.log(-low / high)
        entries = torch.stack([(alpha - shift).sigmoid().sum() for alpha in self.alpha])
        if self.group is None:
            return entries.sum()
        groups = (self.group - shift).sigmoid()
        return (groups * entries).sum() if product else groups.sum() + entries.sum()


class Arrival:
    """Sends the gradient that a base parameter got on to what ``theta``, its value, was made of."""

    def __init__(self, theta: Tensor):
        self.theta = theta

    def __call__(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        grad, parameter.grad = parameter.grad, None
        self.theta.backward(grad.to(self.theta.dtype))


@register("diff-gates-again")
class Again(Edit):
    """Writes theta before a part of the model that is also called by itself, as ``generate`` calls an encoder."""

    port = "call"

    def forward(self, args: Any, kwargs: Any) -> Any:
        """All arguments of the part, as they are."""
        gates = gates_of(self.context.home)
        assert gates is not None
        gates.write()
        return args, kwargs


def gates_of(at: Any) -> Gates | None:
    """The gates of an attachment; None once its entries are fixed."""
    return next((edit for edit in at.edits.values() if isinstance(edit, Gates)), None)

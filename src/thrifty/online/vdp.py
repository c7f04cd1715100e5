"""VDP: Visual Domain Prompt for Continual Test Time Adaptation (Gan, Bai, Lou, Ma, Zhang, Shi, Luo; AAAI 2023,
arXiv:2212.04145). A reconstruction: abstract and figures are what is known of it."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core import Attachment
from ..core.errors import NoSuchSetting, Unfit
from ..methods.vdp import DomainPrompts
from .cotta import CoTTA


class VDP(CoTTA):
    """The patches of ``thrifty.VDP`` learn as in ``CoTTA``; the model itself, with its buffers, stays as it is, bit for bit.

    What is domain-agnostic should not follow each domain, so those of its entries a_i that proved sensitive are held back:

        loss + ``hold`` · sum_i omega_i (a_i - a_i before the batch)²;   omega_i <- rho omega_i + (1 - rho) (dloss / da_i)²

    with omega of the batches before. The penalty's own gradient is zero where a step begins, so it is taken implicitly: Adam's
    step for the loss gives a*, and a = (a* + 2 rate hold omega a_before) / (1 + 2 rate hold omega). The domain-specific patch is
    free. A batch is answered by the teacher's patches once it has been learnt from.

    ``hold`` and ``rho`` are not published: choose them on corruptions that are not reported on. Gradients of single pixels are
    small, and omega is their square, so that a hold of 1 does little. Batch norms work as they were trained, unless
    ``norms="batch"``.

    Raises:
        Unfit: ``at`` holds no such patches, or trains something else as well.
        NoSuchSetting: a number that has no meaning.
    """

    def __init__(self, at: Attachment, augment: Callable[[Tensor], Tensor], *, hold: float = 1.0, rho: float = 0.9,
                 restore: float = 0.0, norms: str = "source", **settings: Any) -> None:
        prompts = [edit for edit in at.edits.values() if isinstance(edit, DomainPrompts)]
        if len(prompts) != 1 or len(at.parameters()) != 2:
            held = sorted({row.edit for row in at.plan})
            raise Unfit(f"VDP moves the patches of thrifty.VDP and nothing else; {at.name!r} holds {held}")
        if not 0 <= hold < math.inf or not 0 <= rho <= 1:
            raise NoSuchSetting(f"VDP: hold must be at least 0, finite, and rho in [0, 1], not {hold!r} and {rho!r}")
        super().__init__(at, augment, restore=restore, norms=norms, **settings)
        self.prompts, self.hold, self.rho = prompts[0], hold, rho
        self.omega = torch.zeros_like(self.prompts.agnostic)

    def learn(self, loss: Tensor) -> None:
        """One step against the loss, of which sensitive entries of the agnostic patch make only a part."""
        a = self.prompts.agnostic
        before = a.detach().clone()
        super().learn(loss)
        assert a.grad is not None
        with torch.no_grad():
            pull = 2 * self.optimiser.param_groups[0]["lr"] * self.hold * self.omega
            a.copy_(before + (a - before) / (1 + pull))
            self.omega.mul_(self.rho).add_(a.grad.square(), alpha=1 - self.rho)

    @torch.no_grad()
    def answer(self, given: dict[str, Any], said: Tensor) -> Tensor:
        """f(x) with the teacher's patches as they are now."""
        with self.holding(self.teacher):
            return self.ask(given)

    @torch.no_grad()
    def begin_domain(self) -> None:
        """Say that another domain begins: the specific patch starts anew, the agnostic one stays."""
        s = self.prompts.specific
        name = next(name for name, p in self.theta.items() if p is s)
        s.zero_()
        self.teacher[name].zero_()
        self.optimiser.state.pop(s, None)

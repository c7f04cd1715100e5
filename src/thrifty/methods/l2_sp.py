"""L2-SP: Explicit Inductive Bias for Transfer Learning with Convolutional Networks (Li, Grandvalet, Davoine; ICML 2018,
arXiv:1802.01483)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import need
from ..core.state import whole
from .full import FullFineTuning, head_names

if TYPE_CHECKING:
    from ..core import Attachment


@dataclass
class L2SP(FullFineTuning):
    """Full fine-tuning that is drawn back to where it starts from:

        L + alpha/2 |w - w0|² + beta/2 |w_head|²

    where w are all parameters that came with the source, the scales and shifts of its normalisations too, and w0 their values
    there; running statistics are none. The head is drawn to zero. Nothing else decays, whatever ``decay`` says. The authors try
    alpha from 1e-3 to 1; the defaults are those of the Transfer-Learning-Library.
    """

    name = "l2-sp"
    aliases = ("l2sp",)
    paper = "Li et al., Explicit Inductive Bias for Transfer Learning with Convolutional Networks, ICML 2018, arXiv:1802.01483"
    trains = "every weight of the model, drawn back to the pretrained ones"

    head_factor: float = 10.0
    alpha: float = 0.01
    beta: float = 0.01

    def check(self) -> None:
        """Weights of the terms are not negative."""
        super().check()
        need(self.alpha >= 0, self, "alpha", "at least 0")
        need(self.beta >= 0, self, "beta", "at least 0")

    def penalty(self, at: Attachment) -> Tensor | float:
        """alpha/2 |w - w0|² + beta/2 |w_head|²."""
        trained, head = dict(at.named_parameters()), head_names(at)
        body = {name.removeprefix("base:"): p for name, p in trained.items() if name.startswith("base:") and name not in head}
        moved = squares(whole(p) - at.base[name].to(p.device) for name, p in body.items())
        return self.alpha / 2 * moved + self.beta / 2 * squares(whole(trained[name]) for name in head)

    def groups(self, at: Attachment, rate: float, decay: float) -> list[dict[str, Any]]:
        """Without decay: the penalty says where the weights are drawn to."""
        return super().groups(at, rate, 0.0)


def squares(tensors: Iterable[Tensor]) -> Tensor | float:
    """The sum of the squares of all numbers in ``tensors``, in float32 at least; 0 where there are none."""
    sums = [t.float().square().sum() if t.dtype != torch.float64 else t.square().sum() for t in tensors]
    return torch.stack(sums).sum() if sums else 0.0

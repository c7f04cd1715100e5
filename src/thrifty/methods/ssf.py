"""SSF: Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning (Lian, Zhou, Feng, Wang; NeurIPS 2022,
arXiv:2210.08823)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core import Edit, Method, Site, need, register
from ..core.errors import CannotMerge, Unfit

if TYPE_CHECKING:
    from ..core import Attachment

OPERATIONS = ("patch", "conv", "norm*", "attn.*", "mlp.*")  # roles of what computes in a trunk
AFFINE = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _BatchNorm)  # norms that end with weight * t + bias


@register("scale-shift")
class ScaleShift(Edit):
    """gamma * y + beta, one number each per channel; gamma ~ N(1, std²), beta ~ N(0, std²), or none without ``shift``."""

    def __init__(self, site: Site, shift: bool = True, std: float = 0.02):
        super().__init__(site)
        if isinstance(getattr(site.module, "act", None), nn.Module) and not isinstance(site.module.act, nn.Identity):
            raise Unfit(f"{site.path!r} ({type(site.module).__name__}) applies its activation itself, so there is no place between "
                        "the two for a scale and a shift: leave it out of where=")
        self.axis = _channels(site.module)
        self.gamma = nn.Parameter(torch.empty(site.dout).normal_(1.0, std))
        self.beta = nn.Parameter(torch.empty(site.dout).normal_(0.0, std)) if shift else None

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [..., c], or [batch, c, ...] where the site gives out images -> the same shape."""
        shape = [1] * y.dim()
        shape[self.axis] = -1
        z = y.to(self.gamma.dtype) * self.gamma.view(shape)
        return (z if self.beta is None else z + self.beta.view(shape)).to(y.dtype)

    def fold(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """diag(gamma) W and gamma b + beta; of a norm, gamma w and gamma b + beta.

        Raises:
            CannotMerge: there is no bias to hold the shift, or the norm does not multiply by its weight as it is.
        """
        if self.site.role.startswith("norm") and not isinstance(self.site.module, AFFINE):
            raise CannotMerge(f"how {self.site.path!r} ({type(self.site.module).__name__}) uses its weight is not known, so a "
                              "scale cannot be folded into it: leave norms out of where= to merge")
        if bias is None and self.beta is not None:
            raise CannotMerge(f"{self.site.path!r} has no bias that could hold the shift: leave it out of where= to merge, or tune "
                              "with shift=False")
        gamma = self.gamma.to(weight.dtype)
        if bias is not None:
            bias = gamma.to(bias.dtype) * bias + (0 if self.beta is None else self.beta.to(bias.dtype))
        return gamma.view(-1, *(1 for _ in weight.shape[1:])) * weight, bias


@dataclass
class SSF(Method):
    """A scale and a shift per channel after every operation of the trunk: z' = gamma * z + beta, z [..., c].

    Operations are the patch embedding, every norm, the projections of attention and feed-forward network, the merging of
    patches between stages, and every convolution of a convolutional trunk; ``where`` may name fewer. The start, gamma ~ N(1,
    0.02²) and beta ~ N(0, 0.02²), is near the base but not on it. Folded into the weights and biases before it, it costs nothing;
    a layer without a bias has nothing to hold the shift. Neither is decayed, as decay would pull gamma to zero.
    """

    name = "ssf"
    route = "inject parameters"
    paper = "Lian et al., Scaling & Shifting Your Features, NeurIPS 2022, arXiv:2210.08823"
    trains = "a scale and a shift per channel after every operation"
    mergeable = True
    inference = "none once merged"
    identity_at_start = False
    rate = 5e-3
    Edit = ScaleShift

    shift: bool = True
    std: float = 0.02
    where: str = ""

    def check(self) -> None:
        """The deviation is not negative."""
        need(self.std >= 0, self, "std", "at least 0")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """A scale and a shift at every place."""
        for site in at.sites(self.where or _everywhere(at)):
            at.put(site, ScaleShift, **self.numbers(site))


def _everywhere(at: Attachment) -> str:
    """The roles that compute in this trunk, and the linear layers between its stages; what stands before the head is left out.

    Raises:
        Unfit: there are none.
    """
    every = at.sites("*")
    roles = dict.fromkeys(s.role for s in every if any(fnmatchcase(s.role, role) for role in OPERATIONS))
    stacks = {s.stack for s in every if s.role == "block"}
    between = [s.path for s in every if s.role == "linear" and any(s.path.startswith(f"{stack}.") for stack in stacks)]
    if not roles:
        raise Unfit(f"{type(at.model).__name__} has no operation that is known by its role: name places with where=")
    return "|".join([*roles, *between])


def _channels(module: Any) -> int:
    """The axis of the channels in what ``module`` gives out."""
    kind = type(module).__name__
    first = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.GroupNorm, _BatchNorm)) or kind.endswith("Norm2d")
    return 1 if first or getattr(module, "data_format", "") == "channels_first" else -1

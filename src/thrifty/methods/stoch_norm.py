"""StochNorm: Stochastic Normalization (Kou, You, Long, Wang; NeurIPS 2020)."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..core import Edit, Site, base, need, register
from ..core.errors import Unfit
from ..core.site import at_path
from .full import FullFineTuning

if TYPE_CHECKING:
    from ..core import Attachment


@register("stochastic-norm")
class StochasticNorm(Edit):
    """In training, of each channel of a batch norm's answer, x and z [batch, channels, ...], one of two:

        z = s BN_batch(x) + (1 - s) BN_running(x),   s ~ Bernoulli(p) per channel, one draw for the whole batch

    At port "call", before the batch norm moves its statistics, it computes the branch that uses them; at "output" it chooses.
    """

    def __init__(self, site: Site, port: str, p: float = 0.5):
        super().__init__(site)
        if port not in ("call", "output"):
            raise ValueError(f"stochastic normalisation acts at 'call' and at 'output', not at {port!r}")
        self.port, self.p = port, p

    def forward(self, one: Any, other: Any) -> Any:
        """(args, kwargs) of the batch norm, as they are; or its output z and input x -> z."""
        if self.port == "call":
            if self.training:
                self.context.taps[f"running {self.site.path}"] = _answer_still(self.site.module, *one, **other)
            return one, other
        if not self.training:
            return one
        running: Tensor = self.context.taps.pop(f"running {self.site.path}")
        s = torch.rand(one.shape[1], device=one.device).view(1, -1, *[1] * (one.dim() - 2)) < self.p
        return torch.where(s, one, running)


def _answer_still(module: Any, *args: Any, **kwargs: Any) -> Tensor:
    """What a batch norm says by its running statistics, which stay as they are; with the activation that timm puts inside."""
    module.training = False
    try:
        return module.forward(*args, **kwargs)
    finally:
        module.training = True


@dataclass
class StochNorm(FullFineTuning):
    """Full fine-tuning in which every batch norm uses, channel by channel, the batch's statistics or its running ones.

    ``p`` is the probability of the batch's. The running ones are those before the step, and move with every batch as they do in
    a batch norm; evaluation uses them alone. p = 1 is ordinary fine-tuning, p = 0 keeps the batch out of the answers. Nothing
    is left of it when training ends.
    """

    name = "stochnorm"
    aliases = ("stoch-norm",)
    modalities = ("image",)
    paper = "Kou et al., Stochastic Normalization, NeurIPS 2020"
    trains = "every weight of the model, through batch norms that forget half of each batch"

    head_factor: float = 10.0
    p: float = 0.5

    def check(self) -> None:
        """A probability is one."""
        super().check()
        need(0 <= self.p <= 1, self, "p", "in [0, 1]")

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        """Claim everything, and put both halves on each batch norm.

        Raises:
            Unfit: there is none.
        """
        norms = [path for path, module in base.modules(at.model)
                 if isinstance(module, _BatchNorm) and module.track_running_stats]
        if not norms:
            raise Unfit(f"{type(at.model).__name__} has no batch norm with running statistics, so there is nothing to choose "
                        "between (layer norms keep none): use full fine-tuning")
        super().attach(at, batches)
        for path in norms:
            site = at_path(at.model, path, "norm", None, -1, "", at.seen)
            for port in ("call", "output"):
                at.put(site, StochasticNorm, port=port, p=self.p)

    def finish(self, at: Attachment) -> None:
        """Leave plain batch norms."""
        for key in [row.key for row in at.plan if row.edit == StochasticNorm.registered]:
            at.take_away(key)

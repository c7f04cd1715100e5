"""Still: the frozen backbone stays in evaluation mode while what was put on it trains.

As the authors of Visual Prompt Tuning train (Jia, Tang, Chen, Cardie, Belongie, Hariharan, Lim; ECCV 2022, arXiv:2203.12119):
dropout and stochastic depth of the backbone are off, dropout of the edits is on.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...core import Edit, Site, base, register

if TYPE_CHECKING:
    from ...core import Attachment


@register("still")
class Still(Edit):
    """Before the model runs in training mode, every frozen module below it is put into evaluation mode; edits stay as they are.

    Modules that recompute in the backward pass (gradient checkpointing) do so in training mode alone, and keep it;
    without ``recompute`` they do not, for methods that keep no graph of the backbone.
    """

    port = "call"

    def __init__(self, site: Site, recompute: bool = True):
        super().__init__(site)
        self.recompute = recompute

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All arguments of the model, as they are."""
        if self.training:
            for path, module in base.modules(self.site.module):
                decides = self.recompute and getattr(module, "gradient_checkpointing", False)
                if path and module.training and not decides:
                    module.training = False
        return args, kwargs


def keep_still(at: Attachment, recompute: bool = True) -> None:
    """Put a ``Still`` where the model is entered. Put last, it acts before the method's other edits there."""
    at.put(at.sites("model")[0], Still, recompute=recompute)

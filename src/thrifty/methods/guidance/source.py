"""The source: the network as it was before it trained, asked once more while it does."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import functional_call

from ...core.errors import Unfit

if TYPE_CHECKING:
    from ...core import Attachment


@torch.no_grad()
def ask_source(at: Attachment, inputs: dict[str, Tensor]) -> Any:
    """What the model says to ``inputs`` with its original weights and statistics, in evaluation mode and without gradients.

    The originals are those that ``at`` keeps of all that trains in place, so no second model is held. Edits run as they are.

    Raises:
        Unfit: the weights are spread over processes.
    """
    if any(hasattr(p, "full_tensor") for p in at.model.parameters()):
        raise Unfit(f"{at.method.name if at.method else 'this method'} asks the source network at every step, which it cannot "
                    "while weights are spread over processes: train with DDP (without --use_fsdp)")
    modes = [(module, module.training) for module in at.model.modules()]
    at.model.eval()
    try:
        return functional_call(at.model, {name: t.to(at.seen.device) for name, t in at.base.items()}, (), inputs)
    finally:
        for module, mode in modes:
            module.training = mode

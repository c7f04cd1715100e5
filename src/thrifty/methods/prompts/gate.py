"""Gates that read the text, and how they know which of its tokens are real.

UniPELT: A Unified Framework for Parameter-Efficient Language Model Tuning (Mao, Mathias, Hou, Almahairi, Ma, Han, Yih,
Khabsa; ACL 2022, arXiv:2110.07577).
"""
from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from ...core import Edit, Site, register
from ...core.errors import Unfit


class Gate(nn.Module):
    """G = mean over tokens of sigmoid(x w + b): x [batch, tokens, d] -> [batch, 1, 1]."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """The mean is over the tokens that ``mask`` [batch, tokens] says are real, or over all without one.

        Raises:
            Unfit: the mask is about other tokens than x.
        """
        open_ = self.linear(x.to(self.linear.weight.dtype)).sigmoid()
        if mask is None:
            return open_.mean(1, keepdim=True)
        if mask.shape[1] != x.shape[1] or len(mask) not in (1, len(x)):
            raise Unfit(f"a gate reads states {list(x.shape)} under a mask of {list(mask.shape)}")
        real = mask[..., None].to(open_.dtype)
        return (open_ * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp_min(1)


@register("real-tokens-tap")
class RealTokensTap(Edit):
    """Changes nothing: leaves which tokens are real [batch, tokens], as the block's own mask says, for the gates inside."""

    port = "call"

    def __init__(self, site: Site):
        super().__init__(site)
        module: Any = site.module
        self.names = list(inspect.signature(module.forward).parameters)

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All arguments of the block, as they are.

        Raises:
            Unfit: the mask is not a tensor [batch, tokens] or [batch, heads, queries, keys].
        """
        given = dict(zip(self.names, args, strict=False)) | kwargs
        padding, mask = given.get("src_key_padding_mask"), given.get("attention_mask")
        self.context.taps["mask"] = padding == 0 if padding is not None else None if mask is None else _real(mask)
        return args, kwargs


def _real(mask: Any) -> Tensor:
    """Which tokens some query may look at."""
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        raise Unfit(f"a gate cannot tell padding by a mask of type {type(mask).__name__}: load the model with "
                    "attn_implementation='sdpa', or use pool='official'")
    if mask.dim() == 2:
        return mask > 0
    allowed = mask >= 0 if mask.is_floating_point() else mask != 0  # added to logits, or true where one may look
    return allowed.any(1).any(1)

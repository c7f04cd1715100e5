"""The one port into attention: every scaled_dot_product_attention call made inside a module, whoever wrote it."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Rewrite = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
After = Callable[[Tensor, Tensor, float], Tensor]
_sdpa = F.scaled_dot_product_attention


class Attending(TorchFunctionMode):
    """While active, sends q, k, v [batch, heads, length, dim] of every attention call through ``rewrite``.

    Keys that ``rewrite`` puts in front are visible to every query, and queries that it puts in front see every key: the mask
    grows with them, and a causal flag becomes the mask that it stands for. A fourth answer [batch, keys in front] tells rows that
    see only some of those. What the call gives out goes through ``after``,
    with the queries and the scale of their logits; there the answers to queries that were put in front must be taken off again.
    """

    def __init__(self, rewrite: Rewrite, after: After | None = None):
        super().__init__()
        self.rewrite, self.after = rewrite, after

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return self.attend(*args, **kwargs) if func is _sdpa else func(*args, **kwargs)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
               is_causal: bool = False, **kwargs: Any) -> Tensor:
        """Stands in for scaled_dot_product_attention; same arguments, same result shape."""
        rows, length = query.shape[-2], key.shape[-2]
        query, key, value, *seen = self.rewrite(query, key, value)
        asked, extra = query.shape[-2] - rows, key.shape[-2] - length
        if ((asked or extra) and is_causal) or (seen and attn_mask is None):
            every = torch.ones(rows, length, dtype=torch.bool, device=query.device)
            attn_mask, is_causal = every.tril() if is_causal else every, False
        if (asked or extra) and attn_mask is not None:
            attn_mask = attn_mask.expand(*attn_mask.shape[:-2], rows if asked else attn_mask.shape[-2], length)
            attn_mask = F.pad(attn_mask, (extra, 0, asked, 0), value=True if attn_mask.dtype == torch.bool else 0.0)
        if seen and attn_mask is not None:
            hidden = F.pad(~seen[0], (0, length))[:, None, None, :]
            attn_mask = attn_mask & ~hidden if attn_mask.dtype == torch.bool else attn_mask.masked_fill(hidden, float("-inf"))
        y = _sdpa(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, **kwargs)
        scale = kwargs.get("scale")
        return y if self.after is None else self.after(y, query, query.shape[-1] ** -0.5 if scale is None else scale)

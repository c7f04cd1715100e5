"""A tap for attention masks, for edits that attend over the same tokens beside a layer, as the projected attention layers of
Stickland and Murray (ICML 2019) do."""
from __future__ import annotations

from typing import Any

from torch import Tensor

from ...core import AttentionEdit, Site, register
from ...core.attending import Attending
from ...core.errors import Unfit


class Listening(Attending):
    """Changes nothing: tells its edit which mask an attention call comes with."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
               is_causal: bool = False, **kwargs: Any) -> Tensor:
        """As scaled_dot_product_attention."""
        self.rewrite.hear(query, key, attn_mask, is_causal)  # type: ignore[attr-defined]
        return super().attend(query, key, value, attn_mask, dropout_p, is_causal, **kwargs)


@register("mask-tap")
class MaskTap(AttentionEdit):
    """Changes nothing: leaves the mask of the site's attention under ``key`` for an edit further on in the same forward pass."""

    passive = True

    def __init__(self, site: Site, key: str):
        super().__init__(site)
        self.key = key
        self.__dict__["mode"] = Listening(self)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v as they are."""
        return q, k, v

    def hear(self, query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> None:
        """Keep the mask, if another attention over the same tokens can use it.

        Raises:
            Unfit: keys stand there that are no tokens of the batch, or the mask is different for each head.
        """
        if query.shape[-2] != key.shape[-2]:
            raise Unfit(f"the attention {self.site.path!r} has {query.shape[-2]} queries and {key.shape[-2]} keys; one beside it "
                        "sees the tokens of the batch only (generate with use_cache=False, put no prefixes beside it)")
        if mask is not None and mask.dim() == 4 and mask.shape[1] > 1:
            raise Unfit(f"the attention {self.site.path!r} adds something else in each of its {mask.shape[1]} heads (relative "
                        "positions?), which an attention with heads of its own cannot take over")
        self.context.taps[self.key] = mask, causal, query.shape[-2]

"""What lets a language model see: features of pictures, handed over beside a text, made as wide as its tokens.

    model(input_ids=ids, image_features=features)        # the features of a frozen image encoder, one row for each text
    with seeing(model, features):                        # the same, where arguments are checked by name
        model.generate(input_ids=ids)

LLaMA-Adapter V2: Parameter-Efficient Visual Instruction Model (Gao, Han, Zhang, Lin, Geng, Zhou, Zhang, Lu, He, Yue, Li, Qiao;
2023, arXiv:2304.15010).
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core import Edit, Site, attachments, register
from ...core.errors import Unfit
from ...core.hooks import edits_on

GIVEN, SEEN = "image_features", "seen"  # what comes in beside the text, and what is made of it for the layers


class Sight(Edit):
    """At the root: takes ``image_features`` out of the model's arguments, and leaves ``look`` of them for its layers.

    A text without a picture leaves nothing.
    """

    port = "call"

    def __init__(self, site: Site, features: int):
        super().__init__(site)
        self.features = features

    def look(self, features: Tensor) -> Tensor:
        """features [batch, tokens, C] -> [batch, n, d]."""
        raise NotImplementedError

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All arguments of the model -> the same without the features.

        Raises:
            Unfit: the features have another width, or another shape than [batch, C] or [batch, tokens, C].
        """
        kwargs, taps = dict(kwargs), self.context.taps
        features = kwargs.get(GIVEN, taps.get(GIVEN))
        if self is next(e for e in edits_on(self.site.module).values() if isinstance(e, Sight) and e.on):
            kwargs.pop(GIVEN, None)  # the oldest comes last, and all have read them
        taps.pop(SEEN, None)
        if features is not None:
            if features.dim() not in (2, 3) or features.shape[-1] != self.features:
                raise Unfit(f"{GIVEN} are [batch, {self.features}] or [batch, tokens, {self.features}], as the adapter was made "
                            f"for, not {list(features.shape)}")
            features = features if features.dim() == 3 else features[:, None]
            taps[SEEN] = self.look(features.to(next(self.parameters()).dtype))
        return args, kwargs


@register("sight-linear")
class Projected(Sight):
    """W f + b for every feature f: [batch, tokens, C] -> [batch, tokens, d]."""

    def __init__(self, site: Site, features: int, width: int):
        super().__init__(site, features)
        self.project = nn.Linear(features, width)

    def look(self, features: Tensor) -> Tensor:
        """[batch, tokens, C] -> [batch, tokens, d]."""
        seen: Tensor = self.project(features)
        return seen


class Block(nn.Module):
    """x' = x + SA(LN(x)), x' + MLP(LN(x')), as in a ViT; x [batch, tokens, w], the network ``ratio`` w wide."""

    def __init__(self, width: int, heads: int, ratio: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.back = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, w] -> the same shape."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        out: Tensor = x + self.back(F.gelu(self.wide(self.norm2(x))))
        return out


@register("sight-queries")
class Queried(Sight):
    """``length`` learned queries among all tokens of a picture: LN(W [blocks([Q; LN(W_c f + b_c)])]_{1..length} + b).

    Q [length, w] ~ N(0, 1) and w = ``inner``; there are ``depth`` blocks. [batch, tokens, C] -> [batch, length, d].
    """

    def __init__(self, site: Site, features: int, width: int, length: int, inner: int = 768, depth: int = 8, heads: int = 16,
                 ratio: int = 4):
        super().__init__(site, features)
        self.reduce, self.reduce_norm = nn.Linear(features, inner), nn.LayerNorm(inner)
        self.queries = nn.Parameter(torch.randn(length, inner))
        self.blocks = nn.ModuleList(Block(inner, heads, ratio) for _ in range(depth))
        self.project, self.project_norm = nn.Linear(inner, width), nn.LayerNorm(width)

    def look(self, features: Tensor) -> Tensor:
        """[batch, tokens, C] -> [batch, length, d]."""
        x = torch.cat([self.queries.expand(len(features), -1, -1), self.reduce_norm(self.reduce(features))], 1)
        for block in self.blocks:
            x = block(x)
        seen: Tensor = self.project_norm(self.project(x[:, : len(self.queries)]))
        return seen


@contextlib.contextmanager
def seeing(model: nn.Module, features: Tensor) -> Iterator[None]:
    """While the context lasts, row i of every batch is about the picture of ``features`` [i], or of [i // n] where a search keeps
    n candidates for each text.

    Raises:
        Unfit: nothing that is attached to the model can see.
    """
    able = [at for at in attachments(model).values() if any(isinstance(edit, Sight) for edit in at.edits.values())]
    if not able:
        raise Unfit(f"nothing on this {type(model).__name__} looks at pictures: attach a method that does, with the width of their "
                    "features, such as LLaMAAdapter(features=768)")
    for at in able:
        at.context.taps[GIVEN] = features
    try:
        yield
    finally:
        for at in able:
            at.context.taps.pop(GIVEN, None)
            at.context.taps.pop(SEEN, None)


def seen_by(edit: Edit, rows: int) -> Tensor | None:
    """What the batch's pictures look like to ``edit``, [rows, n, d]; None for text alone.

    Raises:
        Unfit: there are not as many pictures as texts, nor the same number of texts for each.
    """
    seen: Tensor | None = edit.context.taps.get(SEEN)
    if seen is None or len(seen) == rows:
        return seen
    if rows % len(seen):
        raise Unfit(f"{len(seen)} pictures were handed over beside {rows} texts: give one for each")
    return seen.repeat_interleave(rows // len(seen), 0)

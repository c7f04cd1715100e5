"""The layers of a navigator: those of BERT, and layers in which a language and a vision stream meet.

Devlin et al., "BERT", NAACL 2019, arXiv:1810.04805; Tan and Bansal, "LXMERT", EMNLP 2019, arXiv:1908.07490.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-12  # of every normalisation
HIDDEN = -10000.0  # what a mask adds to the logits of what must not be seen


def hide(seen: Tensor) -> Tensor:
    """Which tokens may be seen [B, T] -> what is added to the logits of attention [B, 1, 1, T]."""
    return (1.0 - seen.float())[:, None, None] * HIDDEN


class Attention(nn.Module):
    """Softmax attention of x to itself, or to a ``context``, without the projection of what comes out."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """x [B, T, width], context [B, S, width], mask [B, 1, 1, T or S], which is added -> [B, T, width]."""
        context = x if context is None else context
        q, k, v = (layer(t).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
                   for layer, t in ((self.query, x), (self.key, context), (self.value, context)))
        mask = None if mask is None else mask.to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0)
        return y.transpose(-2, -3).flatten(-2)


class Output(nn.Module):
    """LN(x + drop(W y + b)): the end of a sub-layer."""

    def __init__(self, width: int, given: int, dropout: float) -> None:
        super().__init__()
        self.dense, self.dropout = nn.Linear(given, width), nn.Dropout(dropout)
        self.LayerNorm = nn.LayerNorm(width, eps=EPSILON)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [..., given], x [..., width] -> [..., width]."""
        out: Tensor = self.LayerNorm(self.dropout(self.dense(y)) + x)
        return out


class SelfAttention(nn.Module):
    """LN(x + drop(W_o Attention(x)))."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self = Attention(width, heads, dropout)
        self.output = Output(width, width, dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, T, width] -> the same shape."""
        out: Tensor = self.output(self.self(x, mask), x)
        return out


class CrossAttention(Attention):
    """LN(x + drop(W_o Attention(x, context)))."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__(width, heads, dropout)
        self.output = Output(width, width, dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """x [B, T, width], context [B, S, width] -> [B, T, width]."""
        out: Tensor = self.output(super().forward(x, mask, context), x)
        return out


class Intermediate(nn.Module):
    """gelu(W x + b), by the error function."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., hidden]."""
        return F.gelu(self.dense(x))


class BertLayer(nn.Module):
    """A layer of BERT, with the names that `transformers` gives its parts."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, dropout)
        self.intermediate = Intermediate(width, hidden)
        self.output = Output(width, hidden, dropout)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """[B, T, width] -> the same shape; the mask is added to the logits."""
        a = self.attention(hidden_states, attention_mask)
        out: Tensor = self.output(self.intermediate(a), a)
        return out


class Encoder(nn.Module):
    """Layers of BERT, one after the other."""

    def __init__(self, layers: int, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(width, heads, hidden, dropout) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, width] -> the same shape."""
        for layer in self.layer:
            x = layer(x, mask)
        return x


class CrossLayer(nn.Module):
    """Vision v and language l attend to each other by one shared attention X, and then each goes through a layer of its own:

        v' = Layer_v(X(v, l)),   l' = Layer_l(X(l, v))

    Both X read what the layer is given. Without ``updates`` l' = l: language is not changed by what is seen.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, updates: bool) -> None:
        super().__init__()
        self.updates = updates
        self.cross_attn = CrossAttention(width, heads, dropout)
        self.vision, self.language = (BertLayer(width, heads, hidden, dropout) for _ in range(2))

    def forward(self, vision: Tensor, vision_mask: Tensor, language: Tensor, language_mask: Tensor) -> tuple[Tensor, Tensor]:
        """vision [B, T, width] and language [B, L, width] with masks [B, 1, 1, T or L], which are added -> both."""
        seen = self.vision(self.cross_attn(vision, language_mask, language), vision_mask)
        if not self.updates:
            return seen, language
        return seen, self.language(self.cross_attn(language, vision_mask, vision), language_mask)


class CrossEncoder(nn.Module):
    """Layers in which both streams meet; ``updates`` has an entry for each: whether it changes the language."""

    def __init__(self, updates: Sequence[bool], width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layer = nn.ModuleList(CrossLayer(width, heads, hidden, dropout, own) for own in updates)

    def forward(self, vision: Tensor, vision_mask: Tensor, texts: Sequence[Tensor],
                language_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Vision [B, T, width] and language [B, L, width] after the last layer.

        ``texts`` is the language that enters the first layer or, where it is not updated, each of the layers.
        """
        language = texts[0]
        for number, layer in enumerate(self.layer):
            language = texts[number] if len(texts) > 1 else language
            vision, language = layer(vision, vision_mask, language, language_mask)
        return vision, language


class Fixed(nn.Module):
    """x, from which no gradient goes back."""

    def forward(self, x: Tensor) -> Tensor:
        """x itself."""
        return x.detach()

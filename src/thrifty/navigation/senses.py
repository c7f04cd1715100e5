"""What a navigator hears, sees and remembers, as vectors.

Chen, Guhur, Schmid, Laptev, "History Aware Multimodal Transformer for Vision-and-Language Navigation", NeurIPS 2021,
arXiv:2110.13309.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from thrifty.navigation.config import AgentConfig
from thrifty.navigation.layers import EPSILON, Encoder


class Words(nn.Module):
    """LN(word + position + type 0), with dropout."""

    def __init__(self, config: AgentConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocabulary, config.width, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.positions, config.width)
        self.token_type_embeddings = nn.Embedding(2, config.width)
        self.LayerNorm, self.dropout = nn.LayerNorm(config.width, eps=EPSILON), nn.Dropout(config.dropout)

    def forward(self, ids: Tensor) -> Tensor:
        """Token numbers [B, L] -> [B, L, width]."""
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.word_embeddings(ids) + self.position_embeddings(places) + self.token_type_embeddings(torch.zeros_like(ids))
        out: Tensor = self.dropout(self.LayerNorm(x))
        return out


class Sight(nn.Module):
    """LN(W image) + LN(W angle) of views."""

    def __init__(self, config: AgentConfig) -> None:
        super().__init__()
        self.image, self.angle = nn.Linear(config.features, config.width), nn.Linear(config.angles, config.width)
        self.image_norm, self.angle_norm = (nn.LayerNorm(config.width, eps=EPSILON) for _ in range(2))

    def forward(self, images: Tensor, angles: Tensor) -> Tensor:
        """images [..., features], angles [..., 4] -> [..., width]."""
        kind = self.image.weight.dtype
        out: Tensor = self.image_norm(self.image(images.to(kind))) + self.angle_norm(self.angle(angles.to(kind)))
        return out


class Options(nn.Module):
    """LN(sight + type 1 + kind), with dropout, of the options that are observed."""

    def __init__(self, config: AgentConfig) -> None:
        super().__init__()
        self.sight, self.kinds = Sight(config), nn.Embedding(3, config.width)
        self.LayerNorm, self.dropout = nn.LayerNorm(config.width, eps=EPSILON), nn.Dropout(config.dropout)

    def forward(self, images: Tensor, angles: Tensor, kinds: Tensor, types: Tensor) -> Tensor:
        """images [B, C, features], kinds [B, C], types [B, C, width] -> [B, C, width]."""
        out: Tensor = self.dropout(self.LayerNorm(self.sight(images, angles) + types + self.kinds(kinds.clamp(min=0))))
        return out


class History(nn.Module):
    """One token for each step that was taken: LN(sight of the view looked along and the turn taken + position + type + panorama).

    The panorama is the mean over 36 views of what an encoder makes of them. In front of all steps stands a learned token.
    """

    def __init__(self, config: AgentConfig) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(config.width))
        self.sight = Sight(config)
        self.positions, self.kind = nn.Embedding(config.steps, config.width), nn.Embedding(1, config.width)
        self.LayerNorm, self.dropout = nn.LayerNorm(config.width, eps=EPSILON), nn.Dropout(config.dropout)
        self.panorama_sight = Sight(config)
        self.panorama = Encoder(config.panorama_layers, config.width, config.heads, config.hidden, config.dropout)

    def first(self, rows: int) -> Tensor:
        """The token in front [rows, 1, width]."""
        out: Tensor = self.dropout(self.LayerNorm(self.cls + self.kind.weight[0])).expand(rows, 1, -1)
        return out

    def forward(self, images: Tensor, angles: Tensor, views: Tensor, view_angles: Tensor) -> Tensor:
        """images [B, H, features], angles [B, H, 4], views [B, H, 36, features], view_angles [B, H, 36, 4] -> [B, H, width]."""
        rows, steps = images.shape[:2]
        around = self.dropout(self.panorama_sight(views, view_angles)).flatten(0, 1)
        around = self.panorama(around).mean(1).unflatten(0, (rows, steps))
        places = torch.arange(steps, device=images.device)
        x = self.sight(images, angles) + self.positions(places) + self.kind.weight[0] + around
        out: Tensor = self.dropout(self.LayerNorm(x))
        return out

"""The network that learns, and the values that it starts from."""
from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from recipes.vit_mini.recipe import PATCH, SIDE, Recipe


class Pupil(nn.Module):
    """A ViT with a head for each set on its first token, and a map from the mean of its tokens to the teacher's features."""

    def __init__(self, recipe: Recipe, classes: dict[str, int], features: int) -> None:
        super().__init__()
        from transformers import ViTConfig, ViTModel

        config = ViTConfig(hidden_size=recipe.width, num_hidden_layers=recipe.depth, num_attention_heads=recipe.heads,
                           intermediate_size=4 * recipe.width, image_size=SIDE, patch_size=PATCH, layer_norm_eps=1e-6,
                           attn_implementation="sdpa")
        self.trunk: Any = ViTModel(config, add_pooling_layer=False)
        self.answers = nn.ModuleDict({name: nn.Linear(recipe.width, count) for name, count in classes.items()})
        self.hints = nn.Linear(recipe.width, features)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The first token and the mean over all tokens, each [n, width], of pixels [n, 3, 32, 32]."""
        states: Tensor = self.trunk(pixels).last_hidden_state
        return states[:, 0], states.mean(dim=1)


@torch.no_grad()
def begin(pupil: Pupil, pictures: Tensor) -> None:
    """Start values that save a small training much of its way; ``pictures`` [n, 3, 32, 32] in [-1, 1] say what patches are like."""
    embeddings = pupil.trunk.embeddings
    embeddings.position_embeddings.copy_(waves(SIDE // PATCH, embeddings.position_embeddings.shape[2]))
    projection = embeddings.patch_embeddings.projection
    projection.weight.copy_(whiten(pictures, projection.weight.shape))
    projection.bias.zero_()
    for layer in pupil.trunk.layers:
        mimic(layer.attention)


def waves(side: int, width: int) -> Tensor:
    """Sines and cosines of the places of a grid [1, 1 + side², width], zero for the first token.

    A. Vaswani et al., NeurIPS 2017; in two dimensions as K. He et al., CVPR 2022, arXiv:2111.06377, have them.
    """
    speeds: Tensor = 10000 ** (-torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * speeds
    line = torch.cat([angles.sin(), angles.cos()], 1)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return torch.cat([torch.zeros(1, width), torch.cat([rows, columns], 2).flatten(0, 1)])[None]


def whiten(pictures: Tensor, shape: torch.Size) -> Tensor:
    """A projection of patches [width, 3, p, p] whose outputs are uncorrelated, in directions drawn by chance.

    K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, arXiv:2404.00498, begins its first layer like this.
    """
    patches = nn.functional.unfold(pictures, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    inner = (values + 1e-2).rsqrt()[:, None] * vectors.T
    turn = torch.linalg.qr(torch.randn(max(shape[0], len(inner)), len(inner)))[0][: shape[0]]
    return (turn @ inner).view(shape)


def mimic(attention: Any) -> None:
    """Weights whose products look like those of trained attention: W_q W_k near the identity, W_v W_o near its negative.

    A. Trockman, J. Z. Kolter, "Mimetic Initialization of Self-Attention Layers", ICML 2023, arXiv:2305.09828.
    """
    width, size = attention.q_proj.weight.shape[1], attention.head_dim
    unit = torch.eye(width)
    for head in range(attention.num_attention_heads):
        u, s, v = torch.linalg.svd(0.7 * torch.randn(width, width) / math.sqrt(width) + 0.7 * unit)
        rows, half = slice(head * size, (head + 1) * size), s[:size].sqrt()
        attention.q_proj.weight[rows] = (u[:, :size] * half).T
        attention.k_proj.weight[rows] = half[:, None] * v[:size]
    u, s, v = torch.linalg.svd(0.4 * torch.randn(width, width) / math.sqrt(width) - 0.4 * unit)
    attention.v_proj.weight.copy_((u * s.sqrt()).T)
    attention.o_proj.weight.copy_((s.sqrt()[:, None] * v).T)
    for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
        part.bias.zero_()

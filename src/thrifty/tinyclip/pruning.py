"""What settled gates closed is cut out of a CLIPModel, and what they left half open is multiplied into its weights."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from thrifty.models.ragged import NoAttention, NoMLP, settle_config
from thrifty.tinyclip.masks import Layer, Masks


@torch.no_grad()
def prune(model: Any, masks: list[Masks]) -> None:
    """Cut the towers of ``model`` that have these masks, in place. It then computes what it computed with its settled gates.

    Its configuration says the new widths; where layers came out unlike it becomes one that `thrifty.models.load` alone reads (see
    `thrifty.models.ragged`).
    """
    for each in masks:
        z = _value(each, "hidden", each.width)
        kept = z.nonzero()[:, 0]
        _cut_ends(model, each.tower, kept, z[kept])
        for layer in each.layers:
            block = each.tower.encoder.layers[layer.place]
            _cut_norm(block.layer_norm1, kept)
            _cut_norm(block.layer_norm2, kept)
            _cut_attention(block, layer, each, kept, z[kept])
            _cut_mlp(block, layer, each, kept, z[kept])
    settle_config(model)


def _value(masks: Masks, name: str, size: int) -> Tensor:
    """The values of gates, or ones where there are none."""
    found = masks.value(name)
    return torch.ones(size, device=next(masks.tower.parameters()).device) if found is None else found


def _cut_ends(model: Any, tower: Any, kept: Tensor, z: Tensor) -> None:
    """Embeddings, the LayerNorms outside the blocks, and the projection to features."""
    embeddings = tower.embeddings
    for table in (part for part in embeddings.modules() if isinstance(part, nn.Embedding)):
        table.weight = nn.Parameter(table.weight[:, kept] * z)
        table.embedding_dim = len(kept)
    if tower is model.vision_model:
        patch = embeddings.patch_embedding
        patch.weight = nn.Parameter(patch.weight[kept] * z[:, None, None, None])
        embeddings.class_embedding = nn.Parameter(embeddings.class_embedding[kept] * z)
        patch.out_channels = embeddings.embed_dim = model.vision_embed_dim = len(kept)
        _cut_norm(tower.pre_layrnorm, kept)
        _cut_norm(tower.post_layernorm, kept)
        _set(model.visual_projection, model.visual_projection.weight[:, kept])
    else:
        model.text_embed_dim = len(kept)
        _cut_norm(tower.final_layer_norm, kept)
        _set(model.text_projection, model.text_projection.weight[:, kept])


def _cut_attention(block: Any, layer: Layer, masks: Masks, kept: Tensor, z: Tensor) -> None:
    if not layer.heads:
        return
    whole = torch.as_tensor(masks.layer("attention", layer.place))
    heads = _value(masks, f"heads.{layer.place}", layer.heads)
    rows = heads.repeat_interleave(layer.head).nonzero()[:, 0]
    if not len(rows) or not whole:
        block.self_attn = NoAttention()
        return
    attention = block.self_attn
    for part in (attention.q_proj, attention.k_proj, attention.v_proj):
        _set(part, part.weight[rows][:, kept], part.bias[rows])
    out, given = attention.out_proj, heads.repeat_interleave(layer.head)[rows]
    _set(out, out.weight[kept][:, rows] * given * (z * whole)[:, None], out.bias[kept] * z * whole)
    attention.num_heads, attention.embed_dim = len(rows) // layer.head, len(rows)


def _cut_mlp(block: Any, layer: Layer, masks: Masks, kept: Tensor, z: Tensor) -> None:
    if not layer.inner:
        return
    whole = torch.as_tensor(masks.layer("mlp", layer.place))
    inner = _value(masks, f"inner.{layer.place}", layer.inner)
    rows = inner.nonzero()[:, 0]
    if not len(rows) or not whole:
        block.mlp = NoMLP()
        return
    first, second = block.mlp.fc1, block.mlp.fc2
    _set(first, first.weight[rows][:, kept], first.bias[rows])
    _set(second, second.weight[kept][:, rows] * inner[rows] * (z * whole)[:, None], second.bias[kept] * z * whole)


def _cut_norm(norm: Any, kept: Tensor) -> None:
    norm.weight, norm.bias = nn.Parameter(norm.weight[kept]), nn.Parameter(norm.bias[kept])
    norm.normalized_shape = (len(kept),)


def _set(linear: Any, weight: Tensor, bias: Tensor | None = None) -> None:
    """Other values, perhaps of another size."""
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight.clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.clone())

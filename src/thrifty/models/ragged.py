"""CLIP models whose layers have unlike sizes, as pruning leaves them; transformers has no configuration for such.

Each tower's configuration then has a key ``ragged``: {"head": width of a head, "heads": [of each layer], "inner": [width of each
MLP]}, 0 where a layer has no attention or no MLP. Its own number of heads says nothing. The tensors have the usual names.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.core.errors import BrokenArtifact


class NoAttention(nn.Module):
    """Where attention was left out: nothing is added to the states."""

    def forward(self, hidden_states: Tensor, **given: Any) -> tuple[Tensor, None]:
        """Zeros."""
        return torch.zeros_like(hidden_states), None


class NoMLP(nn.Module):
    """Where an MLP was left out: nothing is added to the states."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(hidden_states)


def is_ragged(config: Any) -> bool:
    """Whether layers of a model of this configuration have unlike sizes."""
    return any(getattr(getattr(config, name, None), "ragged", None) is not None for name in ("text_config", "vision_config"))


def sizes_of(tower: Any) -> tuple[int, list[tuple[int, int, int]]]:
    """The width of a tower's states, and of each layer its heads, their width, and the inner width of its MLP."""
    found = []
    for block in tower.encoder.layers:
        attention, mlp = block.self_attn, block.mlp
        head = 0 if isinstance(attention, NoAttention) else attention.head_dim
        heads = 0 if isinstance(attention, NoAttention) else attention.q_proj.out_features // head
        found.append((heads, head, 0 if isinstance(mlp, NoMLP) else mlp.fc1.out_features))
    return tower.embeddings.position_embedding.embedding_dim, found


def settle_config(model: Any) -> None:
    """Give a CLIPModel whose modules were cut the configuration that they have: a common one where all layers are alike."""
    changed: dict[str, dict[str, Any]] = {}
    for name, tower in (("image", model.vision_model), ("text", model.text_model)):
        width, layers = sizes_of(tower)
        heads, head, inner = layers[0]
        if set(layers) == {layers[0]} and heads * head == width and inner:
            changed[name] = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": inner, "ragged": None}
        else:
            inners = [layer[2] for layer in layers]
            changed[name] = {"hidden_size": width, "num_attention_heads": 1, "intermediate_size": max(1, *inners), "ragged": {
                "head": max(layer[1] for layer in layers), "heads": [layer[0] for layer in layers], "inner": inners}}
    config = reconfigure(model.config, **changed)
    config._attn_implementation = model.config._attn_implementation
    model.config = config
    for tower, part in ((model.vision_model, config.vision_config), (model.text_model, config.text_config)):
        for module in (m for m in tower.modules() if hasattr(m, "config")):
            module.config = part


def reconfigure(config: Any, image: dict[str, Any], text: dict[str, Any]) -> Any:
    """The configuration of a CLIPModel with other values in its towers'; None takes a value away."""
    plain = config.to_dict()
    for name, changed in (("vision_config", image), ("text_config", text)):
        plain[name] = {key: value for key, value in (plain[name] | changed).items() if key not in changed or value is not None}
    return type(config).from_dict(plain)


def build(config: Any) -> Any:
    """A CLIPModel with layers of these sizes, with start values that mean nothing.

    Raises:
        BrokenArtifact: the sizes are not one for each layer.
    """
    from transformers import CLIPModel

    model = CLIPModel(config)
    for tower, part in ((model.vision_model, config.vision_config), (model.text_model, config.text_config)):
        ragged = getattr(part, "ragged", None)
        if ragged is None:
            continue
        layers = tower.encoder.layers
        whole = isinstance(ragged, dict) and set(ragged) == {"head", "heads", "inner"}
        if not whole or not len(ragged["heads"]) == len(ragged["inner"]) == len(layers):
            raise BrokenArtifact(f"ragged: {ragged!r} does not say the sizes of {len(layers)} layers")
        for block, heads, inner in zip(layers, ragged["heads"], ragged["inner"], strict=True):
            _resize(block, part.hidden_size, ragged["head"], heads, inner)
    return model


def _resize(block: Any, width: int, head: int, heads: int, inner: int) -> None:
    if heads:
        attention = block.self_attn
        attention.num_heads, attention.head_dim, attention.embed_dim, attention.scale = heads, head, heads * head, head**-0.5
        attention.q_proj, attention.k_proj, attention.v_proj = (nn.Linear(width, heads * head) for _ in range(3))
        attention.out_proj = nn.Linear(heads * head, width)
    else:
        block.self_attn = NoAttention()
    if inner:
        block.mlp.fc1, block.mlp.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)
    else:
        block.mlp = NoMLP()


def read(folder: Path, config: Any, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """The model in ``folder``, and which tensors are missing or of another shape, as transformers reports them."""
    model = build(config).to(dtype)
    return model, fill(model, folder)


def fill(model: nn.Module, folder: Path) -> dict[str, Any]:
    """Give a model the tensors of the safetensors files in ``folder``, if all are there; which are missing or of another shape."""
    from safetensors.torch import load_file

    held: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        held |= load_file(file)
    own = model.state_dict()
    wrong = [(name, held[name].shape, own[name].shape) for name in own if name in held and held[name].shape != own[name].shape]
    missing = [name for name in own if name not in held]
    if not missing and not wrong:
        model.load_state_dict({name: held[name] for name in own})
    return {"missing_keys": missing, "mismatched_keys": wrong}

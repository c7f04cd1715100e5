"""Where a prefix leaves the text: PEFT puts it into the cache, and so the text's positions begin behind it."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .refusal import CannotExpress

ROTARY = ("gemma", "llama", "mistral", "qwen2", "qwen3")  # model types that rotate halves of the whole of each head
TABLES = {"bert": "position_embeddings", "gpt2": "wpe"}  # model types with a table of positions -> its name
STILL = ("default", "linear", "llama3", "yarn")  # kinds of rotation that do not depend on the length of the text


def table(model: Any) -> str | None:
    """The path of the model's table of positions, or None if it rotates.

    Raises:
        CannotExpress: it does neither in a way in which PEFT's prefix has an equal here.
    """
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind in TABLES:
        return next(path for path, _ in model.named_modules() if path.rpartition(".")[2] == TABLES[kind])
    if kind not in ROTARY:
        known = ", ".join(sorted((*ROTARY, *TABLES)))
        raise CannotExpress("PEFT puts a prefix into the cache, which moves the positions of the text (and gives the prefix "
                            f"the biases of relative ones); what that does is known for {known}, not for {kind!r}")
    layers = getattr(model.config, "layer_types", None)
    window = any(layer != "full_attention" for layer in layers) if layers else getattr(model.config, "sliding_window", None)
    if window:
        raise CannotExpress(f"PEFT's prefix slides out of the attention window of this {kind!r}, one of thrifty does not")
    return None


def rotate(model: nn.Module, keys: Tensor, by: int) -> Tensor:
    """``keys`` [heads, length, dim] turned as by a move of ``by`` positions, back if it is negative.

    A query at i + P meets a key as a query at i meets the key turned back by P: so a prefix that was learned behind moved
    positions becomes one for positions that stay.

    Raises:
        CannotExpress: the rotation depends on the length of the text, or turns only a part of each head.
    """
    rotary: Any = next(m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding"))
    kind = getattr(rotary, "rope_type", "default")
    if kind not in STILL or rotary.inv_freq.numel() * 2 != keys.shape[-1]:
        raise CannotExpress(f"the rotation of kind {kind!r} of {rotary.inv_freq.numel() * 2} of {keys.shape[-1]} dimensions "
                            "cannot be undone for a prefix")
    like = torch.zeros(1, device=rotary.inv_freq.device)
    cos, sin = (t[0, 0].to(keys) / rotary.attention_scaling
                for t in rotary(like, torch.tensor([[abs(by)]], device=like.device)))
    first, second = keys.chunk(2, -1)
    return keys * cos + torch.cat([-second, first], -1) * (sin if by >= 0 else -sin)

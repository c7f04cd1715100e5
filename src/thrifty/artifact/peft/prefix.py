"""Prefix tuning: PEFT's table of cached keys and values, and our keys and values at each attention."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...core import Attachment
from ...core.errors import BrokenArtifact
from .config import Config
from .place import refuse_shape, take
from .positions import rotate, table
from .refusal import CannotExpress
from .tasks import PREFIX_TASKS, task
from .weights import PROMPT


def read(at: Attachment, config: Config, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put a prefix on every attention; takes what it uses out of ``tensors`` and returns the attachment's state.

    Raises:
        BrokenArtifact: the table has another shape than the config and the model ask for.
        CannotExpress: the model's positions or its task make PEFT compute something else.
    """
    from ...methods.prefix import PrefixTuning

    task(at.model, config, PREFIX_TASKS)
    path = table(at.model)
    values, count = take(tensors, PROMPT), config["num_virtual_tokens"]
    refuse_shape(PROMPT, values, (count, *values.shape[1:]))
    method = PrefixTuning(length=count, mlp=False, shift=path is not None)
    method.check()
    method.attach(at)
    at.method = method
    edits: dict[str, Any] = {row.key: at.edits[row.key] for row in at.plan if row.edit == "prefix"}
    heads, _, dim = next(iter(edits.values())).k.shape
    refuse_shape(PROMPT, values, (count, 2 * len(edits) * heads * dim))
    if (modules := config.get("num_transformer_submodules")) not in (None, 1):
        raise BrokenArtifact(f"num_transformer_submodules = {modules!r} has no meaning in {type(at.model).__name__}")
    split = values.float().view(count, 2 * len(edits), heads, dim).permute(1, 2, 0, 3)
    state: dict[str, Tensor] = {}
    for layer, key in enumerate(edits):
        k = split[2 * layer] if path is not None else rotate(at.model, split[2 * layer], -count)
        state |= {f"edit:{key}:k": k, f"edit:{key}:v": split[2 * layer + 1]}
    return state


def write(at: Attachment, config: Config) -> dict[str, Tensor]:
    """Complete ``config`` and return the table.

    Raises:
        CannotExpress: some attention has no prefix or one of another length, or the text's positions stay where PEFT moves
            them.
    """
    path = table(at.model)
    pairs: list[tuple[Tensor, Tensor]] = [at.edits[row.key].pair() for row in at.plan if row.edit == "prefix"]  # type: ignore[operator]
    count = {k.shape[1] for k, _ in pairs}
    layers = getattr(at.model, "config").num_hidden_layers  # noqa: B009  every model that ``table`` knows has one
    if len(count) != 1 or len(pairs) != layers:
        raise CannotExpress(f"{len(pairs)} prefixes of lengths {sorted(count)} in {layers} layers: PEFT has one length for all")
    length = count.pop()
    moved = sum(row.numbers["by"] for row in at.plan if row.edit == "shift-positions")
    if path is not None and moved != length:
        raise CannotExpress(f"PEFT puts a prefix into the cache, which moves the text's positions in {path!r} by {length}; "
                            f"this one was learned with positions moved by {moved}")
    found = []
    for k, v in pairs:
        found += [k if path is not None else rotate(at.model, k, length), v]
    heads, _, dim = found[0].shape
    config |= {"num_virtual_tokens": length, "num_layers": layers, "num_attention_heads": heads, "token_dim": heads * dim,
               "num_transformer_submodules": 1, "encoder_hidden_size": heads * dim, "prefix_projection": False}
    return {PROMPT: torch.stack(found).detach().permute(2, 0, 1, 3).reshape(length, -1)}

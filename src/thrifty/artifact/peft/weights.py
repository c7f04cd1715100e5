"""adapter_model.safetensors: read whole and finite, under the names of the base model's own modules."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...core.errors import BrokenArtifact
from ..files import read_header
from .config import PICKLE, TENSORS

PREFIX = "base_model.model."  # PeftModel.base_model is the tuner, whose .model is the user's
SHARED = ("vera_A", "vera_B")  # these are the tuner's own, not those of a module in the model
PROMPT_PREFIX, PROMPT = "base_model.", "prompt_embeddings"  # prompt learning has no tuner in between


def read_weights(folder: Path, prompt: bool) -> dict[str, Tensor]:
    """Name -> tensor, without PEFT's prefix. ``prompt`` says that the file holds a prompt or a prefix.

    Raises:
        BrokenArtifact: there is only a pickle, the file is truncated, a name lacks the prefix, or a value is not finite.
    """
    where = folder / TENSORS
    if not where.is_file() and (folder / PICKLE).exists():
        raise BrokenArtifact(f"{folder} holds its weights as a pickle ({PICKLE}), which can run code when it is read and so is "
                             "not: load it with peft and save it again with safe_serialization=True")
    read_header(where)
    from safetensors import SafetensorError, safe_open

    found: dict[str, Tensor] = {}
    prefix = PROMPT_PREFIX if prompt else PREFIX
    own = {f"{PROMPT_PREFIX}{name}": name for name in SHARED}
    try:
        with safe_open(where, "pt") as file:
            for name in file.keys():  # noqa: SIM118  the file object is not iterable
                if not name.startswith(prefix) and name not in own and not (prompt and name == PROMPT):
                    raise BrokenArtifact(f"{where}: the name {name!r} does not begin with {prefix!r}")
                found[own.get(name, name.removeprefix(prefix))] = _finite(where, name, file.get_tensor(name))
    except SafetensorError as error:
        raise BrokenArtifact(f"{where} is not whole: {error}") from None
    return found


def _finite(where: Path, name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        if tensor.numel() != 1 or not name.endswith(".num_batches_tracked"):
            raise BrokenArtifact(f"{where}: {name!r} holds {tensor.dtype}, not floating-point numbers")
    elif not torch.isfinite(tensor).all():
        raise BrokenArtifact(f"{where}: {name!r} holds NaN or infinity")
    return tensor

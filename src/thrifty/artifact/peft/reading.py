"""Read: an adapter folder that HF PEFT wrote, onto a model."""
from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ...core import Attachment
from ...core.attaching import finish
from ...core.errors import BrokenArtifact, ThriftyError, WrongBase
from ...core.probe import Example, Seen
from . import full, lowrank, prefix, prompt, scales, vera
from .config import CONFIG, Config, read_config
from .weights import read_weights

State = dict[str, Tensor]
READERS: dict[str, Callable[[Attachment, Config, State], State]] = {
    "LORA": lowrank.read, "VERA": vera.read, "IA3": scales.read, "PREFIX_TUNING": prefix.read, "PROMPT_TUNING": prompt.read,
}


def read(folder: str | Path, model: nn.Module, name: str = "default", base: str = "any", *, example: Example | None = None,
         check: bool = True) -> Attachment:
    """Rebuild the adapter in ``folder`` on ``model``, where it gives what it gives under PEFT, and return the handle.

    Args:
        base: PEFT keeps the name of the base model and no fingerprint, so only "any" can be had: what is compared are names
            and shapes.
        example: as for ``thrifty.attach``.
        check: run the model once in search of edits that it never reaches.

    Raises:
        BrokenArtifact: the folder is not whole, or a tensor is missing, left over, of another shape or not finite.
        CannotExpress: a type, an option or a place has no counterpart here; the message names it.
        NoSuchSite: a target, a pattern, a layer or a module to save that the model does not have.
        WrongBase: ``base="same"``.
    """
    folder = Path(folder)
    config = read_config(folder)
    if base != "any":
        named = config.get("base_model_name_or_path")
        raise WrongBase(f"{folder / CONFIG} names its base model ({named!r}) but holds nothing to compare weights with: "
                        "make sure of it and pass base='any'" if base == "same" else f"base= is 'any' here, not {base!r}")
    tensors = read_weights(folder, config["peft_type"].endswith("_TUNING"))
    at = Attachment(model, name, seen=Seen(model, example), tied="leave")
    try:
        with torch.random.fork_rng(devices=[]):  # initial values that the file's take the place of
            state = READERS[config["peft_type"]](at, config, tensors)
        state |= full.read(at, config, tensors)
        if tensors:
            raise BrokenArtifact(f"{folder} holds {len(tensors)} tensors of which its config says nothing: "
                                 f"{sorted(tensors)[:5]}")
        at.load_state(state)
        at.about = {"peft": {k: config.get(k) for k in ("base_model_name_or_path", "revision", "task_type", "peft_version")}}
        finish(at, example, check)
    except re.error as error:
        at.detach()
        raise BrokenArtifact(f"{folder / CONFIG}: {error.pattern!r} is not a regular expression: {error}") from None
    except BaseException as error:
        at.detach()
        if isinstance(error, ThriftyError) and str(folder) not in str(error):
            raise type(error)(f"{folder}: {error}") from None
        raise
    at.start = {}  # what a file held may be saved again as it is
    at.base_match = "not compared"
    return at

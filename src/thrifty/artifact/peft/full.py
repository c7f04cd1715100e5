"""Base parameters that a PEFT adapter keeps in full: modules to save, biases, and embeddings saved beside their update."""
from __future__ import annotations

import torch
from torch import Tensor

from ...core import Attachment, base
from ...core import ledger as ledgers
from ...core.errors import BrokenArtifact, HalfAdapted
from .config import Config
from .place import refuse_shape, take
from .refusal import CannotExpress
from .targets import ADDED, module_names, saved_modules


def read(at: Attachment, config: Config, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Let those parameters train in place; takes what it uses out of ``tensors`` and returns the attachment's state.

    Raises:
        BrokenArtifact: a tensor is missing, of another shape, or two tensors say different things of one parameter.
        HalfAdapted: a module to save has a weight that is tied to another's, which PEFT would untie.
    """
    state: dict[str, Tensor] = {}
    for path in saved_modules(at.model, config):
        module = at.model.get_submodule(path)
        for short in module.state_dict():
            if "edits." in f".{short}":
                continue
            name = f"{path}.{short}"
            value = take(tensors, name)
            if rest := _other_homes(at, name, path):
                raise HalfAdapted(f"modules_to_save: {name!r} is tied to {rest}: PEFT would train a copy of it, here both "
                                  "would move")
            _keep(at, state, name, value)
            tensors.pop(f"{path}.original_module.{short}", None)  # bias="all" saves this, and the next one a second time
            if not torch.equal(tensors.pop(f"{path}.modules_to_save.{short}", value), value):
                raise BrokenArtifact(f"'{path}.modules_to_save.{short}' and {name!r} should be equal")
    biases = config.get("bias", "none")
    for name in [n for n in tensors if n.endswith(".bias")] if biases != "none" else []:
        plain = name.replace(".base_layer.", ".")
        if biases == "all" or ".base_layer." in name:
            _keep(at, state, plain, tensors.pop(name))
    for name in [n for n in tensors if n.endswith((".base_layer.weight", "embed_tokens.weight")) or n == "lm_head.weight"]:
        _embedding(at, state, name.replace(".base_layer.", "."), tensors.pop(name))
    return state


def write(at: Attachment, config: Config) -> dict[str, Tensor]:
    """Say in ``config`` which base parameters the adapter holds and return their values.

    Raises:
        CannotExpress: parameters that train without the rest of their module, and are not all biases; tied ones.
    """
    state = at.state()
    names = module_names(at.model)
    added = [a for a in ADDED.get(config["task_type"] or "", ()) if any(n.endswith(a) for n in names)]  # PEFT asks for these
    config["modules_to_save"] = sorted({*_covered(at), *added}) or None
    tensors: dict[str, Tensor] = {}
    for path in saved_modules(at.model, config):
        for short, value in at.model.get_submodule(path).state_dict().items():
            if "edits." not in f".{short}":
                if rest := _other_homes(at, f"{path}.{short}", path):
                    raise CannotExpress(f"{path}.{short} is tied to {rest}: PEFT would train a copy of it, here both moved")
                tensors[f"{path}.{short}"] = state.get(f"base:{path}.{short}", value)
    lone = sorted(n for n in at.base if n not in tensors)
    config["bias"] = _biases(at, lone, tensors)
    if config["bias"] is None:
        raise CannotExpress(f"{lone[:3]} train in place without the rest of their modules: PEFT keeps whole modules, or all "
                            "biases")
    edited = {row.path for row in at.plan}
    for name in lone:
        holder = name.rpartition(".")[0]
        tensors[f"{holder}.base_layer.bias" if holder in edited else name] = state[f"base:{name}"]
    return tensors


def _covered(at: Attachment) -> list[str]:
    """The outermost modules of which every parameter trains in place."""
    full: list[str] = []
    for path in module_names(at.model):
        own = [f"{path}.{n}" for n, _ in base.parameters(at.model.get_submodule(path))]
        if own and not any(path.startswith(f"{f}.") for f in full) and \
                all(ledgers.canonical(at.model, n) in at.base for n in own):
            full.append(path)
    return full


def _biases(at: Attachment, lone: list[str], kept: dict[str, Tensor]) -> str | None:
    every = sorted(n for n, _ in base.parameters(at.model) if n.endswith(".bias") and n not in kept)
    edited = {row.path for row in at.plan}
    only = sorted(n for n in every if n.rpartition(".")[0] in edited)
    return "none" if not lone else "lora_only" if lone == only else "all" if lone == every else None


def _keep(at: Attachment, state: dict[str, Tensor], name: str, value: Tensor) -> None:
    buffers = dict(at.model.named_buffers())
    if name in buffers:
        refuse_shape(name, value, tuple(buffers[name].shape))
        at.train_buffers([name])
    else:
        if name not in dict(at.model.named_parameters(remove_duplicate=False)):
            raise BrokenArtifact(f"{type(at.model).__name__} has no parameter {name!r}")
        refuse_shape(name, value, tuple(at.model.get_parameter(name).shape))
        name = ledgers.canonical(at.model, name)
        if f"base:{name}" in state and not torch.equal(state[f"base:{name}"], value):
            raise BrokenArtifact(f"two tensors of the file say different things of {name!r}")
        at.train(name, wildcard=True)
    state[f"base:{name}"] = value


def _embedding(at: Attachment, state: dict[str, Tensor], name: str, value: Tensor) -> None:
    """PEFT saves targeted and resized embeddings with the adapter; an equal one is no part of it."""
    if name not in dict(at.model.named_parameters(remove_duplicate=False)):
        raise BrokenArtifact(f"{type(at.model).__name__} has no parameter {name!r}")
    own = at.model.get_parameter(name)
    refuse_shape(name, value, tuple(own.shape))
    if not torch.equal(value.to(own), own):
        _keep(at, state, name, value)


def _other_homes(at: Attachment, name: str, path: str) -> list[str]:
    """Names outside ``path`` of the parameter ``name``."""
    every = dict(at.model.named_parameters(remove_duplicate=False))
    return [n for n in ledgers.other_names(at.model, every[name]) if not n.startswith(f"{path}.")] if name in every else []

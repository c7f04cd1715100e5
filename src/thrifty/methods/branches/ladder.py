"""The narrow blocks of a ladder side network (Sung, Cho, Bansal; NeurIPS 2022, arXiv:2206.06522), and how they are called.

A side block is a block of the trunk's own class, built from the trunk's configuration with every width divided. So it
attends, rotates, normalises and remembers as the trunk does. It is called with what the trunk's block was called with, but
for the states and for what goes with their width.
"""
from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import Unfit
from .side import parameters

WIDTHS = ("hidden_size", "intermediate_size", "d_model", "d_ff", "d_kv", "n_embd", "n_inner", "dim", "hidden_dim",
          "encoder_ffn_dim", "decoder_ffn_dim", "head_dim")
TAKEN = {"hidden_states", "attention_mask", "encoder_hidden_states", "encoder_attention_mask", "past_key_values", "layer_past",
         "use_cache", "position_ids", "position_embeddings", "position_bias", "encoder_decoder_position_bias", "args"}


def narrow(block: nn.Module, by: int, memory: int, first: bool) -> nn.Module:
    """A block like ``block`` with widths divided ``by`` and as many heads; it keeps keys and values under index ``memory``.

    The ``first`` of a stack has the table of relative positions, where there is one.

    Raises:
        Unfit: the class is not one that a configuration alone builds, calls for what a side network does not have, or has a
            width that does not divide.
    """
    kind = type(block).__name__
    config = next((copy.deepcopy(m.config) for m in block.modules() if hasattr(m, "config")), None)
    strange = [name for name in parameters(block) if name not in TAKEN]
    if config is None or strange:
        raise Unfit(f"LST builds narrow blocks from a transformers configuration, and calls them with states, masks, positions "
                    f"and caches; {kind} " + (f"also takes {strange[0]!r}" if config is not None else "has no configuration"))
    for name in WIDTHS:
        if isinstance(width := config.__dict__.get(name), int):
            setattr(config, name, width // by)
    numbers = {"config": config, "layer_idx": _index(block), "has_relative_attention_bias": first}
    wanted = inspect.signature(type(block).__init__).parameters
    try:
        made: nn.Module = type(block)(**{name: value for name, value in numbers.items() if name in wanted})
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise Unfit(f"LST cannot build a {kind} {by} times narrower: {error}") from None
    _refuse_uneven(block, made, by)
    heads: int = next((n for m in made.modules() if isinstance(n := getattr(m, "head_dim", None), int)), 0)
    if "position_embeddings" in parameters(block) and heads % 2:
        raise Unfit(f"LST: heads of {heads * by} rotated features in {kind} cannot be {by} times narrower, as pairs would split")
    for module in made.modules():
        if hasattr(module, "layer_idx"):
            module.__dict__["layer_idx"] = memory
    return made


def _index(block: nn.Module) -> int:
    """Where the block thinks that it stands in its stack."""
    return next((i for m in block.modules() if isinstance(i := getattr(m, "layer_idx", None), int)), 0)


def _refuse_uneven(block: nn.Module, made: nn.Module, by: int) -> None:
    wide = {n: p for n, p in block.named_parameters() if p.is_floating_point()}  # quantised ones are packed
    pairs = {n: (tuple(p.shape), tuple(wide[n].shape)) for n, p in made.named_parameters() if n in wide}
    for name, (small, large) in pairs.items():
        if len(small) != len(large) or any(b not in (a, a * by) for a, b in zip(small, large, strict=True)):
            raise Unfit(f"LST: {name!r} of {type(block).__name__} has shape {list(large)}, which does not divide by {by}")
    if all(small == large for small, large in pairs.values()):
        raise Unfit(f"LST does not know which widths in the configuration of {type(block).__name__} to divide")


def narrow_norm(norm: nn.Module, by: int) -> nn.Module:
    """A normalisation like ``norm`` of fewer features; its factors start at one."""
    made = type(norm).__new__(type(norm))
    made.__dict__ = {**norm.__dict__, **nn.Module().__dict__}  # its plain numbers, without parameters, hooks and edits
    for name, p in norm.named_parameters(recurse=False):
        made.register_parameter(name, nn.Parameter((torch.zeros if name == "bias" else torch.ones)(len(p) // by)))
    if isinstance(shape := getattr(norm, "normalized_shape", None), tuple):
        made.__dict__["normalized_shape"] = (shape[-1] // by,)
    return made


def given(asked: dict[str, Any], states: Tensor, by: int, first: int, count: int, below: Tensor | None,
          positions: Tensor | None) -> dict[str, Any]:
    """The arguments of a side block, made from those of the trunk's.

    Args:
        states: of the side network [batch, tokens, d / by].
        first, count: under which indices of a cache the side blocks keep their keys and values.
        below: what the side network beside the encoder gave, for a decoder.
        positions: the relative positions that the first side block gave out.
    """
    new = {**asked, next(iter(asked)): states}
    for name, value in new.items():
        if name.endswith("attention_mask") and isinstance(value, Tensor) and value.is_floating_point():
            new[name] = value.to(states.dtype)
        elif name == "position_embeddings" and value is not None:
            if (rotated := value[0].shape[-1]) % (2 * by):
                raise Unfit(f"LST: {rotated} rotated features of a head cannot be {by} times fewer, as pairs would split")
            new[name] = tuple(t[..., ::by].to(states.dtype) for t in value)  # every by-th angle: those of a head so narrow
        elif name == "encoder_hidden_states" and value is not None:
            new[name] = below
        elif name in ("position_bias", "encoder_decoder_position_bias"):
            new[name] = positions if name == "position_bias" else None
        elif hasattr(value, "get_seq_length"):
            make_room(value, first, count, states.shape[1])
    return new


def make_room(cache: Any, first: int, count: int, tokens: int) -> None:
    """Let a cache, to which the trunk has added ``tokens``, hold the side blocks' keys and values behind the trunk's own.

    Raises:
        Unfit: the cache is of another kind than the growing one, or was begun without the side network.
    """
    parts = [getattr(cache, name) for name in ("self_attention_cache", "cross_attention_cache") if hasattr(cache, name)] or [cache]
    for part in parts:
        strange = next((type(layer).__name__ for layer in part.layers if type(layer).__name__ != "DynamicLayer"), None)
        if strange:
            raise Unfit(f"a side network remembers in caches that grow (DynamicCache); this one is made of {strange}: generate "
                        "without cache_implementation, or with use_cache=False")
        while len(part.layers) < first + count:
            part.layers.append(type(part.layers[0])())
    before = [parts[0].layers[i].get_seq_length() for i in (0, first + count - 1)]
    if before[0] - tokens != before[1]:
        raise Unfit(f"the cache holds {before[0] - tokens} earlier tokens of the trunk and {before[1]} of the side network: it was "
                    "begun while the side network was off")


def tail(holder: nn.Module, blocks: str) -> tuple[nn.Module | None, float]:
    """What a trunk does behind its blocks: its last normalisation, and the probability of the dropout after that."""
    norm, dropout = None, 0.0
    names = [name for name, _ in holder.named_children()]
    for name in names[names.index(blocks) + 1 :]:
        module = holder.get_submodule(name)
        if "Norm" in type(module).__name__:
            norm = module
        elif isinstance(module, nn.Dropout) and norm is not None:
            dropout = module.p
    return norm, dropout

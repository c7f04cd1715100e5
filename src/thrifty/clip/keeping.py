"""Keeping class features as long as they are what they were.

They depend on the sentences, the text tower's tensors and the edits there. Every change of a tensor in place raises its version,
which is how staleness is seen; tensors are held, so that no other can come to lie where one was.
"""
from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from thrifty.core import Edit

if TYPE_CHECKING:
    from thrifty.clip.classifier import ImageTextModel

MOST = 2  # with a method's edits on, and off


class Keeping:
    """The class features computed last, each with what it depends on."""

    def __init__(self) -> None:
        self.held: list[tuple[list[Any], list[Any], Tensor]] = []

    def get(self, model: ImageTextModel, encode: Callable[[], Tensor]) -> Tensor:
        """``encode()``, or what it gave before if that cannot have changed and needs no gradient."""
        if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
            return encode()
        things, facts, fixed = depends(model)
        if not fixed:
            return encode()
        for kept in self.held:
            if len(kept[0]) == len(things) and all(a is b for a, b in zip(kept[0], things, strict=True)) and kept[1] == facts:
                return kept[2]
        with torch.no_grad():
            found = encode()
        self.held = [*self.held, (things, facts, found)][-MOST:]
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"held": []}  # a copy has tensors of its own


def depends(model: ImageTextModel) -> tuple[list[Any], list[Any], bool]:
    """What class features depend on: things by identity, facts by value; and whether one value serves until those change."""
    places: list[nn.Module] = [*model.towers.text_modules(), model.text]
    edits = [m for place in places for m in place.modules() if isinstance(m, Edit) and m.on]
    shared: Any = getattr(model, "edits", None) if edits else None  # what edits read beside their own tensors
    tensors = list(chain(model.towers.text_tensors(), model.text.parameters(), shared.parameters() if shared else ()))
    watched = any(edit._forward_pre_hooks for edit in edits)  # someone wants to see them called
    first = tensors[0]
    fixed = all(edit.constant for edit in edits) and not watched and first.device.type != "meta"
    if torch.is_grad_enabled():
        fixed = fixed and not any(p.requires_grad for p in tensors)
    autocast = fixed and torch.is_autocast_enabled(first.device.type)
    return [model.texts, *edits, *tensors], [first.device, first.dtype, autocast, *(p._version for p in tensors)], fixed

"""What a frozen image-text model makes of the few labelled pictures that a method keeps, or is tuned on.

The places and the averaging over views are those of Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification
(Zhang, Fang, Zhang, Gao, Li, Dai, Qiao, Li; ECCV 2022, arXiv:2207.09519).
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core import Site
from ...core.errors import BadData, ThriftyError
from ...core.probe import run_once
from ..prompts.context import alone, place

if TYPE_CHECKING:
    from ...core import Attachment

VIEW = "crop-flip:0.5"  # a random part of at least half of the area, every other one mirrored


@dataclass(frozen=True)
class Seen:
    """Pictures as the model sees them: features [N, d] of any length, class numbers [N], unit class features [K, d]."""

    raw: Tensor
    labels: Tensor
    classes: Tensor

    @cached_property
    def unit(self) -> Tensor:
        """Features of length one [N, d]."""
        return F.normalize(self.raw, dim=-1)

    @cached_property
    def cosines(self) -> Tensor:
        """Of every picture with every class [N, K]."""
        return self.unit @ self.classes.T


def own_scores(at: Attachment) -> Site:
    """The place of the scores, for a method that answers there by itself.

    Raises:
        Unfit: see ``place``.
        HalfAdapted: another attachment does so already, and of two only one would be heard.
    """
    return alone(place(at, "scores"), "around", "gives scores of its own already, and only one of the two would be heard")


def keep(at: Attachment, batches: Iterable[Any] | None, views: int) -> Seen:
    """The support set: each picture's feature, or its mean over ``views`` chance views where ``batches`` can show some.

    Raises:
        ThriftyError: there is no data, or it has no class numbers. BadData: a class has no picture.
    """
    assert at.method is not None
    if batches is None:
        raise ThriftyError(f"{at.method.name} keeps features of labelled pictures: attach with batches= (dicts of tensors, with "
                           "labels)")
    show = getattr(batches, "view", None) if views else None
    turns = [batches] if show is None else (show(VIEW, turn) for turn in range(views))
    first, *others = (look(at, turn) for turn in turns)
    raw = sum((other.raw for other in others), start=first.raw) / (1 + len(others))
    model: Any = at.model
    names = model.texts.labels
    empty = [name for k, name in enumerate(names) if not bool((first.labels == k).any())]
    if empty:
        raise BadData(f"{at.method.name}: the class {empty[0]!r} has no picture among the {len(first.labels)} to be kept "
                      f"({len(empty)} such): give every class at least one")
    at.about["support"] = {"pictures": len(first.labels), "views of each": views if show is not None else 0}
    return Seen(raw, first.labels, first.classes)


def look(at: Attachment, batches: Iterable[Any]) -> Seen:
    """Every picture of ``batches``, once.

    Raises:
        ThriftyError: there is none, or a batch has no class numbers that the model knows.
    """
    site, model = place(at, "image"), at.model
    known: Any = model.texts
    count, classes = len(known.labels), None
    raw: list[Tensor] = []
    labels: list[Tensor] = []
    handle = site.module.register_forward_hook(lambda module, args, out: raw.append(out.float()))
    try:
        for batch in batches:
            told = batch.get("labels")
            if told is None or told.dim() != 1 or told.is_floating_point() or bool(((told < 0) | (told >= count)).any()):
                raise ThriftyError(f"a batch of {sorted(batch)} lacks class numbers from 0 to {count - 1}, one a row, under "
                                   "'labels'")
            classes = run_once(model, {name: value for name, value in batch.items() if name != "labels"})["text_embeds"]
            labels.append(told)
    finally:
        handle.remove()
    if classes is None:
        raise ThriftyError("there is no labelled picture to look at: attach with batches=, dicts of tensors with labels")
    return Seen(torch.cat(raw), torch.cat(labels), classes.float())

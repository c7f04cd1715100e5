"""Zoos by name: "zoo:" and the names of models, separated by commas."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import NoSuchSetting, Unfit
from ..models.backbone import Backbone, count
from ..models.sight import Sight, show, sight
from .zoo import Zoo, gather

PREFIX = "zoo:"
HEAD = ["head.weight", "head.bias"]


@dataclass(frozen=True)
class Shown:
    """Pictures as one model's preparation leaves them -> as another's does; an object, so that it pickles."""

    seen: Sight
    wanted: Sight

    def __call__(self, pixel_values: Tensor) -> Tensor:
        return show(pixel_values, self.seen, self.wanted)


def join_names(names: str) -> str:
    """What `load` calls a zoo of ``names``, which are separated by commas.

    Raises:
        NoSuchSetting: see ``split_names``.
    """
    return PREFIX + ",".join(split_names(PREFIX + names))


def split_names(name: str) -> list[str]:
    """The names of the models in "zoo:a,b".

    Raises:
        NoSuchSetting: there is one only, or a gap.
    """
    names = [part.strip() for part in name.removeprefix(PREFIX).split(",")]
    if "" in names or len(names) < 2:
        raise NoSuchSetting("a zoo is made of at least two models, their names separated by commas, not of "
                            f"{name.removeprefix(PREFIX)!r}")
    return names


def load_zoo(name: str, task: str, labels: Sequence[str] | None, *, dtype: torch.dtype, offline: bool, seed: int) -> Backbone:
    """The models of "zoo:a,b", each loaded as it would be alone, as one with a new head for ``labels``.

    Raises:
        NoSuchSetting: another task than of classes of pictures, or fewer than two models.
        Unfit: a model without a linear head. ThriftyError: see `thrifty.models.load`, for each of them.
    """
    from ..models import load

    names = split_names(name)
    if task != "image-classification" or labels is None:
        raise NoSuchSetting(f"{name!r} is several models of pictures; they serve image-classification together, not {task}")
    return join([load(one, task, labels, dtype=dtype, offline=offline, seed=seed) for one in names], len(labels), seed=seed)


def join(backbones: Sequence[Backbone], outputs: int, *, seed: int = 0) -> Backbone:
    """Classifiers of pictures as one backbone, whose new head with that many ``outputs`` is drawn under ``seed``.

    Pictures are prepared as the first wants them, and shown to each other one as that wants them; where a model does not say how
    it does, as they are.

    Raises:
        NoSuchSetting, Unfit: see `gather`; or a model that does not read pictures.
    """
    named = [str(one.source.get("id")) for one in backbones]
    for one, name in zip(backbones, named, strict=True):
        if one.preprocess is None or hasattr(one.preprocess, "pad_token_id"):
            raise Unfit(f"{name!r} cannot join a zoo: it comes with nothing that prepares pictures for it")
    seen = [sight(one) for one in backbones]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        zoo = gather([one.model for one in backbones], [brief(name) for name in named], outputs, [_view(seen[0], s) for s in seen])
    first = next(backbones[0].model.parameters())
    zoo.head.to(first.dtype)
    return Backbone(zoo, backbones[0].preprocess, _describe(zoo, backbones, named, seen, seed))


def brief(name: str) -> str:
    """The last part of a path or id, as messages and blocks call a model."""
    return Path(name.rpartition(":")[2]).name or name


def _view(seen: Sight | None, wanted: Sight | None) -> Shown | None:
    return None if seen is None or wanted is None or seen == wanted else Shown(seen, wanted)


def _describe(zoo: nn.Module, backbones: Sequence[Backbone], named: list[str], seen: Sequence[Sight | None],
              seed: int) -> dict[str, Any]:
    first = backbones[0].source
    prepared = first.get("image")
    others = [None if s is None else {"mean": list(s.mean), "std": list(s.std), "size": list(s.size)} for s in seen[1:]]
    notes = [f"Pictures are prepared as {named[0]} wants them, and shown to the other models as those want them."] \
        if any(s is not None and s != seen[0] for s in seen) else []
    return {
        "id": PREFIX + ",".join(named), "kind": "zoo", "revision": None, "task": first.get("task"), "class": Zoo.__name__,
        "files": [], "config_sha256": None, "dtype": first.get("dtype"), "attention": first.get("attention"), "pooling": None,
        "seed": seed, "new_tensors": list(HEAD), "parameters": count(zoo), "notes": notes,
        "bases": [one.source for one in backbones],
        **({} if prepared is None else {"image": {**prepared, "others": others}}),
    }

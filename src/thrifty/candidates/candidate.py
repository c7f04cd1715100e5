"""Who is to be ranked: models by name, modules, or functions that make features."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from thrifty.core.errors import NoSuchSetting
from thrifty.models import Backbone

Table = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Candidate:
    """One model under a ``name``: a ``model``, or a function ``features`` of one's own.

    ``model`` is what `thrifty.tune` takes: a name, a module or a `models.Backbone`. ``features`` is given rows by role, without
    labels ({"text": [...]} or {"image": [...]}), and answers with an array [rows, D]; ``probabilities`` with what the model's own
    classifier says of them, [rows, S], for the scores that ask for that.
    """

    name: str
    model: str | nn.Module | Backbone | None = None
    features: Callable[[Table], Any] | None = None
    probabilities: Callable[[Table], Any] | None = None


def read_candidates(given: Any) -> list[Candidate]:
    """The candidates in ``given``: names with commas between, a list of names, modules, backbones and `Candidate`s, or a mapping
    from names to models or to functions that make features.

    Raises:
        NoSuchSetting: there are none, one is named twice, or something is no model.
    """
    if isinstance(given, str):
        given = [name.strip() for name in given.split(",") if name.strip()]
    if isinstance(given, Mapping):
        found = [_read(one, str(name)) for name, one in given.items()]
    elif isinstance(given, Iterable) and not isinstance(given, nn.Module):
        found = [_read(one) for one in given]
    else:
        found = [_read(given)]
    if not found:
        raise NoSuchSetting("there is no model to rank: name two or more")
    _refuse_twice(found)
    return found


def _read(one: Any, name: str | None = None) -> Candidate:
    if isinstance(one, Candidate):
        if (one.model is None) == (one.features is None):
            raise NoSuchSetting(f"the candidate {one.name!r} needs either a model or a function that makes features")
        return one
    if isinstance(one, str | Path):
        return Candidate(name or str(one), str(one))
    if isinstance(one, Backbone):
        return Candidate(name or str(one.source["id"]), one)
    if isinstance(one, nn.Module):
        return Candidate(name or type(one).__name__, one)
    if callable(one):
        return Candidate(name or str(getattr(one, "__name__", type(one).__name__)), features=one)
    raise NoSuchSetting(f"{name or one!r} is no model: give a name, a module, a thrifty.models.Backbone, or a function that makes "
                        f"features, not {type(one).__name__}")


def _refuse_twice(found: Sequence[Candidate]) -> None:
    names: set[str] = set()
    places: dict[Any, str] = {}
    for one in found:
        place = _place(one)
        if one.name in names or place in places:
            other = "" if one.name in names else f" as {places[place]!r}"
            raise NoSuchSetting(f"the model {one.name!r} is there twice{other}: name every candidate once")
        names.add(one.name)
        places[place] = one.name


def _place(one: Candidate) -> Any:
    """Where the candidate comes from: the same folder may be written in several ways."""
    if isinstance(one.model, str):
        path = Path(one.model).expanduser()
        return path.resolve() if path.is_dir() else one.model
    return id(one.model), id(one.features), id(one.probabilities)

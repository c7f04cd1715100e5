"""Does a value read from JSON have the shape of a ``TypedDict``? If not, say where it first does not."""
from __future__ import annotations

import math
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from thrifty.core.errors import BrokenArtifact, nearest

WORDS = {str: "a text", int: "a whole number", float: "a finite number", list: "a list", dict: "an object", type(None): "null"}


def fit(value: object, kind: Any, place: str, path: str = "") -> None:
    """Return if ``value`` is of the type ``kind``: a TypedDict, list, dict, Literal, union or plain type, to any depth.

    Raises:
        BrokenArtifact: it is not; the message names ``place`` (the file) and the path of the key in it.
    """
    if kind is Any:
        return
    origin, inner = get_origin(kind), get_args(kind)
    if is_typeddict(kind):
        _fit_keys(value, kind, place, path)
    elif origin is Literal:
        if not any(value == one and type(value) is type(one) for one in inner):
            raise BrokenArtifact(f"{place}: {path} is {show(value)}.{nearest(str(value), map(str, inner))}")
    elif origin in (Union, UnionType):
        _fit_any(value, inner, place, path)
    elif origin is list and isinstance(value, list):
        for i, one in enumerate(value):
            fit(one, inner[0], place, f"{path}[{i}]")
    elif origin is dict and isinstance(value, dict):
        for key, one in value.items():
            fit(one, inner[1], place, f"{path}.{key}")
    elif not _plain(value, origin or kind):
        raise BrokenArtifact(f"{place}: {path} must be {WORDS[origin or kind]}, found {show(value)}")


def _fit_any(value: object, kinds: tuple[Any, ...], place: str, path: str) -> None:
    """One of several types: the one whose outer shape fits decides, so that its own message is the one that is seen."""
    for kind in kinds:
        outer = dict if is_typeddict(kind) else get_origin(kind) or kind
        if _plain(value, outer):
            return fit(value, kind, place, path)
    wanted = " or ".join(WORDS[dict if is_typeddict(k) else get_origin(k) or k] for k in kinds)
    raise BrokenArtifact(f"{place}: {path} must be {wanted}, found {show(value)}")


def _fit_keys(value: object, kind: Any, place: str, path: str) -> None:
    if not isinstance(value, dict):
        raise BrokenArtifact(f"{place}: {path or 'the whole'} must be an object, found {show(value)}")
    hints = get_type_hints(kind)
    below = f"{path}." if path else ""
    for key in kind.__required_keys__:
        if key not in value:
            raise BrokenArtifact(f"{place}: {below}{key} is missing")
    for key, one in value.items():
        if key not in hints:
            raise BrokenArtifact(f"{place}: {below}{key} is not a key of {kind.__name__}.{nearest(str(key), hints)}")
        fit(one, hints[key], place, f"{below}{key}")


def _plain(value: object, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def show(value: object) -> str:
    """A short form of ``value`` for a message."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."

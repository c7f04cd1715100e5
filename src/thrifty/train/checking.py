"""Fields of settings: what each is for, and whether a value is one that it may have."""
from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from thrifty.core.errors import NoSuchSetting, nearest

_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", dict: "pairs", type(None): "none"}


def said(default: Any, about: str) -> Any:
    """A field with its default, and what it is for."""
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True)
class Checked:
    """Settings whose values have been looked at: fields are of their types, and their bounds hold (``refuse_odd``)."""

    purpose: ClassVar[str]  # what they are settings of, as an error says it

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for one in fields(self):
            object.__setattr__(self, one.name, fit(one.name, getattr(self, one.name), kinds[one.name]))
        self.refuse_odd()

    def refuse_odd(self) -> None:
        """Raises: NoSuchSetting for a value out of bounds, or that does not go with another."""

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> Self:
        """The settings with these values.

        Raises:
            NoSuchSetting: an unknown name, with the nearest; a value of the wrong type or out of bounds.
        """
        refuse_unknown(cls, values, cls.purpose)
        return cls(**values)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def parts(kind: Any) -> tuple[Any, ...]:
    """The types that a value may have: those of a union, or the one."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def refuse_unknown(kind: type[Any], values: Iterable[str], what: str) -> None:
    """Refuse names that are no fields of ``kind``, whose fields are settings of ``what``.

    Raises: NoSuchSetting, with the nearest.
    """
    known = [one.name for one in fields(kind)]
    for name in values:
        if name not in known:
            raise NoSuchSetting(f"{what} has no setting {name!r}." + nearest(name, known, 40))


def fit(name: str, value: Any, kind: Any) -> Any:
    """``value``, if it is of the type; whole numbers may stand for others.

    Raises: NoSuchSetting.
    """
    for one in parts(kind):
        plain = get_origin(one) or one
        if plain is Literal:
            if value not in get_args(one):
                raise NoSuchSetting(f"{name} is {value!r}." + nearest(str(value), get_args(one)))
            return value
        if plain is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, plain) and not (isinstance(value, bool) and plain is not bool):
            return value
    wanted = " or ".join(_WORDS[get_origin(one) or one] for one in parts(kind))
    raise NoSuchSetting(f"{name} must be {wanted}, not {value!r}")


def need(holds: bool, name: str, value: Any, wanted: str) -> None:
    """Raises: NoSuchSetting unless ``holds``; the message says what was ``wanted``."""
    if not holds:
        raise NoSuchSetting(f"{name} must be {wanted}, not {value!r}")

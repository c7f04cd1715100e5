"""Every method, one import line each. ``CATALOGUE`` lists them by name, ``find`` looks one up."""
from __future__ import annotations

from ..core import Method
from ..core.errors import NoSuchSetting, nearest
from .lora import LoRA

__all__ = ["LoRA"]

CATALOGUE: dict[str, type[Method]] = {m.name: m for m in (globals()[name] for name in __all__)}


def find(name: str) -> type[Method]:
    """The method called ``name``, or known under that alias.

    Raises:
        NoSuchSetting: there is none; the message names the nearest.
    """
    wanted = name.strip().lower()
    for method in CATALOGUE.values():
        if wanted in (method.name, *method.aliases):
            return method
    known = [n for m in CATALOGUE.values() for n in (m.name, *m.aliases)]
    raise NoSuchSetting(f"unknown method {name!r}." + nearest(wanted, known, 40))

"""From what the user said to a method and to settings without gaps."""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from thrifty.core import Method
from thrifty.core.errors import NoSuchSetting
from thrifty.models.kinds import LIKELIHOOD
from thrifty.train.rates import default_rate
from thrifty.train.settings import Settings

STEPS = 300             # that the default number of epochs aims at
FEWEST, MOST = 3, 12    # epochs, by default


def choose_method(method: str | Method | Mapping[str, Any]) -> Method:
    """A method by name, ready made, or as ``{"name": "lora", "rank": 16}``.

    Raises:
        NoSuchSetting: an unknown method or setting, with the nearest; a value out of bounds.
    """
    from thrifty.methods import make

    if isinstance(method, str):
        method = {"name": method}
    if isinstance(method, Mapping):
        if "name" not in method:
            raise NoSuchSetting(f"a method given as {dict(method)!r} lacks its name")
        method = make(str(method["name"]), **{k: v for k, v in method.items() if k != "name"})
    if not isinstance(method, Method):
        raise NoSuchSetting(f"method must be a name, a method such as thrifty.LoRA() or a mapping, not {type(method).__name__}")
    method.check()
    return method


def resolve(settings: Settings, method: Method, task: str, rows: int, world: int, precision: str) -> Settings:
    """``settings`` with the defaults that depend on the method and on the number of training rows."""
    per_epoch = math.ceil(rows / (settings.batch * settings.accumulate * world))
    epochs = settings.epochs or float(min(MOST, max(FEWEST, math.ceil(STEPS / per_epoch))))
    rate = settings.rate or default_rate(method, fresh_head=task not in LIKELIHOOD)
    return replace(settings, task=task, epochs=epochs, rate=rate, precision=cast(Any, precision))


def describe(method: Method) -> dict[str, Any]:
    """Name and settings in one object, as ``choose_method`` takes it."""
    return {"name": method.name, **method.settings()}

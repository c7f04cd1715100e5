"""A budget: how much memory and time a training may take, as people write it."""
from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thrifty.core.errors import NoSuchSetting, nearest

MEMORY = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
TIME = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}
_AMOUNT = re.compile(r"([+-]?[0-9]*\.?[0-9]+)\s*([A-Za-z]*)")


@dataclass(frozen=True)
class Budget:
    """``memory`` in bytes, of tensors; ``time`` in seconds, of training and evaluating. None is no limit."""

    memory: int | None = None
    time: float | None = None

    @classmethod
    def make(cls, given: Budget | Mapping[str, Any] | None) -> Budget:
        """The budget that is ``given`` as {"memory": "2GiB", "time": "30m"}, or with numbers of bytes and seconds.

        Raises:
            NoSuchSetting: another name, an unknown unit, or an amount that is not positive.
        """
        if isinstance(given, Budget):
            return given
        for name in given or {}:
            if name not in ("memory", "time"):
                raise NoSuchSetting(f"a budget has no {name!r}." + nearest(name, ("memory", "time")))
        held = given or {}
        memory, time = held.get("memory"), held.get("time")
        return cls(None if memory is None else int(read_amount("memory", memory, MEMORY)),
                   None if time is None else read_amount("time", time, TIME))

    def __bool__(self) -> bool:
        return self.memory is not None or self.time is not None


def read_amount(name: str, given: Any, units: Mapping[str, int]) -> float:
    """``given`` in the smallest unit: a number of these, or a text such as "1.5GiB" or "1h30m".

    Raises:
        NoSuchSetting: no number, an unknown or missing unit, or an amount that is not positive and finite.
    """
    if isinstance(given, bool) or not isinstance(given, (int, float, str)):
        raise NoSuchSetting(f"{name} must be an amount such as {_shown(units)}, not {given!r}")
    found = _sum_parts(name, given, units) if isinstance(given, str) else float(given)
    if not 0 < found < math.inf:
        raise NoSuchSetting(f"{name} must be more than nothing, not {given!r}")
    return found


def _sum_parts(name: str, text: str, units: Mapping[str, int]) -> float:
    parts, rest = _AMOUNT.findall(text), _AMOUNT.sub("", text).strip()
    if not parts or rest:
        raise NoSuchSetting(f"{name} must be an amount such as {_shown(units)}, not {text!r}")
    known = {unit.lower(): unit for unit in units}
    for _, unit in parts:
        if unit.lower() not in known:
            said = f"the unit {unit!r}" if unit else "no unit"
            raise NoSuchSetting(f"{name} {text!r} has {said}." + nearest(unit, units))
    if len(parts) > 1 and any(number[0] in "+-" for number, _ in parts[1:]):
        raise NoSuchSetting(f"{name} must be an amount such as {_shown(units)}, not {text!r}")
    return sum(float(number) * units[known[unit.lower()]] for number, unit in parts)


def _shown(units: Mapping[str, int]) -> str:
    return "8GiB or 500MB" if units is MEMORY else "90s, 30m or 1h30m"

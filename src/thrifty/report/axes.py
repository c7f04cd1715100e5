"""The ground of a chart: scales, round ticks, grid and names. Colours and letters come from the page's style by class."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from thrifty.report.shapes import line, words


@dataclass(frozen=True)
class Scale:
    """A straight line from values ``low``..``high`` to places ``start``..``end`` in the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of ``value``; the middle if the range is empty."""
        span = self.high - self.low
        return self.start + (self.end - self.start) * ((value - self.low) / span if span else 0.5)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers, at most ``most`` of them and evenly spaced, that lie within ``low``..``high``."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if span / (m * power) < most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def widen(low: float, high: float, most: int = 6) -> tuple[float, float]:
    """The same range, grown to the round numbers around it, never empty."""
    if low == high:
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    marks = ticks(low, high, most)
    step = marks[1] - marks[0] if len(marks) > 1 else high - low
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def name_ticks(marks: Sequence[float], percent: bool = False) -> list[str]:
    """The ticks in words, all with the same number of decimals."""
    factor = 100 if percent else 1
    step = abs(marks[1] - marks[0]) * factor if len(marks) > 1 else abs(marks[0]) * factor or 1
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    places += round(step * 10**places, 6) != round(step * 10**places)   # a step of 2.5 needs one more
    return [f"{mark * factor + 0.0:,.{places}f}".replace("-", "−") + ("\u00a0%" if percent else "") for mark in marks]


def ground(x: Scale, y: Scale, x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]],
           x_name: str, y_name: str) -> str:
    """Grid lines for y, marks for x, and what is measured: y above its axis, x beneath its own, at the right."""
    parts = []
    for value, word in y_ticks:
        parts += [line("grid", x.start, y(value), x.end, y(value)), words("tick", x.start - 7, y(value) + 4, word, "end")]
    for value, word in x_ticks:
        parts += [line("axis", x(value), y.start, x(value), y.start + 4), words("tick", x(value), y.start + 18, word, "middle")]
    parts += [line("axis", x.start, y.start, x.end, y.start), words("name", 2, 13, y_name),
              words("name", x.end, y.start + 36, x_name, "end")]
    return "".join(parts)

"""A forest: points with their intervals under each other, on one axis."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from thrifty.report.axes import Scale, name_ticks, ticks
from thrifty.report.markup import text


@dataclass(frozen=True)
class Line:
    """A point called ``who``: its ``value`` and interval, as numbers and in words; ``kind`` is its class in the page's style."""

    kind: str
    who: str
    value: float
    low: float | None
    high: float | None
    said: str
    between: str


def forest(lines: Sequence[Line], percent: bool = False) -> str:
    """All lines, and the axis beneath them."""
    ends = [end for one in lines for end in (one.value, one.low, one.high) if end is not None]
    pad = (max(ends) - min(ends)) * 0.06 or 0.05
    x = Scale(min(ends) - pad, max(ends) + pad, 0, 100)
    marks = ticks(x.low, x.high, 5)
    shown = "".join(f'<li class="{one.kind}"><span class="who">{text(one.who)}</span>{_track(x, one)}'
                    f'<span class="what"><b>{one.said}</b> <span>{one.between}</span></span></li>' for one in lines)
    axis = "".join(f'<span style="left:{x(mark):.2f}%">{word}</span>'
                   for mark, word in zip(marks, name_ticks(marks, percent), strict=True))
    return (f'<ol class="forest">{shown}<li class="scale" aria-hidden="true"><span class="who"></span>'
            f'<span class="track">{axis}</span><span class="what"></span></li></ol>')


def _track(x: Scale, one: Line) -> str:
    bar = ""
    if one.low is not None and one.high is not None:
        bar = f'<u style="left:{x(one.low):.2f}%;width:{x(one.high) - x(one.low):.2f}%"></u>'
    return f'<span class="track" aria-hidden="true">{bar}<i style="left:{x(one.value):.2f}%"></i></span>'

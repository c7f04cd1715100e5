"""The few shapes that the charts are drawn with, as SVG. Places are rounded to a tenth; texts are escaped here."""
from __future__ import annotations

from thrifty.report.markup import text


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """A straight line of the class ``kind``."""
    return f'<line class="{kind}" x1="{_at(x1)}" y1="{_at(y1)}" x2="{_at(x2)}" y2="{_at(y2)}"/>'


def words(kind: str, x: float, y: float, said: object, anchor: str = "start") -> str:
    """A text that starts, is centred ("middle") or ends at ``x``, on the base line ``y``."""
    return f'<text class="{kind}" text-anchor="{anchor}" x="{_at(x)}" y="{_at(y)}">{text(said)}</text>'


def slanted(kind: str, x: float, y: float, said: object) -> str:
    """A text that rises from (x, y) to the right."""
    return f'<text class="{kind}" transform="translate({_at(x)} {_at(y)}) rotate(-50)">{text(said)}</text>'


def circle(kind: str, x: float, y: float, radius: float) -> str:
    """A circle around (x, y)."""
    return f'<circle class="{kind}" cx="{_at(x)}" cy="{_at(y)}" r="{radius:g}"/>'


def box(kind: str, x: float, y: float, width: float, height: float, strength: float | None = None, round_: float = 0) -> str:
    """A filled rectangle, more or less see-through, with its upper left corner at (x, y)."""
    fill = "" if strength is None else f' fill-opacity="{strength:.2f}"'
    corner = f' rx="{round_:g}"' if round_ else ""
    return f'<rect class="{kind}" x="{_at(x)}" y="{_at(y)}" width="{_at(width)}" height="{_at(height)}"{corner}{fill}/>'


def told(said: object, *shapes: str) -> str:
    """Shapes that say ``said`` when pointed at."""
    return f"<g><title>{text(said)}</title>{''.join(shapes)}</g>"


def drawing(key: str, width: float, height: float, name: str, said: str, body: str) -> str:
    """An SVG with a title and a description for those who do not see it; ``key`` is unique in the page."""
    return (f'<svg class="chart" role="img" aria-labelledby="{key}-t {key}-d" viewBox="0 0 {width:g} {height:g}">'
            f'<title id="{key}-t">{text(name)}</title><desc id="{key}-d">{text(said)}</desc>{body}</svg>')


def _at(place: float) -> str:
    return f"{place:.1f}".removesuffix(".0")

"""A picture of what methods reach for the parameters that they train, as SVG that a browser and a code host show."""
from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape

WIDE, HIGH, LEFT, TOP, RIGHT, BELOW = 860, 520, 64, 44, 150, 56
Points = Mapping[str, Sequence[tuple[float, float]]]


def scatter(points: Points, title: str) -> str:
    """One mark per method at (parameters, mean score) with a bar from its lowest to its highest seed; parameters by decades.

    A method that trains none but its head stands at the left edge, at 1.
    """
    means = {name: (max(1.0, at[0][0]), statistics.fmean(y for _, y in at)) for name, at in points.items()}
    every = [y for at in points.values() for _, y in at]
    low, high = math.floor(20 * min(every)) / 20, math.ceil(20 * max(every)) / 20
    first, last = 0, math.ceil(max(math.log10(x) for x, _ in means.values()))

    def across(x: float) -> float:
        return LEFT + (WIDE - LEFT - RIGHT) * (math.log10(max(1.0, x)) - first) / max(1, last - first)

    def down(y: float) -> float:
        return TOP + (HIGH - TOP - BELOW) * (high - y) / max(1e-9, high - low)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {HIGH}" font-family="sans-serif" font-size="12" '
             f'role="img"><title>{escape(title)}</title><rect width="{WIDE}" height="{HIGH}" fill="#fff"/>',
             f'<text x="{LEFT}" y="24" font-size="15">{escape(title)}</text>',
             f'<text x="{(LEFT + WIDE - RIGHT) / 2}" y="{HIGH - 14}" text-anchor="middle">trained parameters beside the '
             "head</text>"]
    for decade in range(first, last + 1):
        x = across(10.0**decade)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HIGH - BELOW}" stroke="#ddd"/><text x="{x:.1f}" '
                     f'y="{HIGH - BELOW + 18}" text-anchor="middle">{"head only" if decade == 0 else f"{10**decade:,}"}</text>')
    for tick in range(round(20 * low), round(20 * high) + 1):
        y = down(tick / 20)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDE - RIGHT}" y2="{y:.1f}" stroke="#eee"/><text x="{LEFT - 8}" '
                     f'y="{y + 4:.1f}" text-anchor="end">{tick / 20:.2f}</text>')
    heights = apart({name: down(y) for name, (_, y) in means.items()})
    for name, (x, y) in means.items():
        seeds = [score for _, score in points[name]]
        px, py = across(x), down(y)
        parts.append(f'<line x1="{px:.1f}" y1="{down(min(seeds)):.1f}" x2="{px:.1f}" y2="{down(max(seeds)):.1f}" stroke="#36c"/>'
                     f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="#36c"/>'
                     f'<line x1="{px:.1f}" y1="{py:.1f}" x2="{WIDE - RIGHT + 6}" y2="{heights[name]:.1f}" stroke="#36c" '
                     f'stroke-width="0.4"/><text x="{WIDE - RIGHT + 10}" y="{heights[name] + 4:.1f}">{escape(name)} {y:.3f}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def apart(heights: Mapping[str, float], gap: float = 15) -> dict[str, float]:
    """Those heights moved so far that labels do not lie on one another, in their order and within the picture."""
    found: dict[str, float] = {}
    lowest = -math.inf
    for name in sorted(heights, key=heights.__getitem__):
        found[name] = lowest = max(heights[name], lowest + gap)
    over = max(0.0, lowest - (HIGH - 12))
    return {name: max(12.0 + gap * place, y - over) for place, (name, y) in enumerate(found.items())}

"""The pictures, each a pure function from numbers to an SVG string. Colours stay distinct for the colour-blind (Okabe and Ito, 2008)."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from thrifty.report.axes import Scale, drawing, ground, name_ticks, ticks, widen
from thrifty.report.markup import text
from thrifty.report.measure import Bin, likely

WIDTH, HEIGHT = 420.0, 300.0
COLOURS = 6     # the style names s0 to s5


@dataclass(frozen=True)
class Trace:
    """One line: its points, its colour (counted, wraps around) and how it is drawn."""

    points: Sequence[tuple[float, float]]
    colour: int = 0
    kind: str = "firm"      # "firm", "faint", "dashed", or "dotted": firm with a dot on every point


@dataclass(frozen=True)
class Mark:
    """A point that is singled out, with a few words."""

    x: float
    y: float
    words: str
    colour: int = 0


def smooth(values: Sequence[float]) -> list[float]:
    """Running mean with exponentially fading weights (no lag at the start), wide enough to calm a twentieth of the run."""
    keep = 1 - 2 / (max(5, len(values) // 20) + 1)
    total, weight, out = 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        out.append(total / weight)
    return out


def thin(points: Sequence[tuple[float, float]], most: int = 600) -> list[tuple[float, float]]:
    """At most ``most`` points that look the same: the lowest and the highest of every stretch, in order."""
    if len(points) <= most:
        return list(points)
    stretch = -(-len(points) // (most // 2))
    kept: list[tuple[float, float]] = []
    for i in range(0, len(points), stretch):
        part = points[i : i + stretch]
        ends = sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
        kept.extend(ends)
    return kept


def lines(key: str, traces: Sequence[Trace], marks: Sequence[Mark], name: str, told: str,
          x_name: str, y_name: str, percent: bool = False) -> str:
    """Lines over a common x, some points singled out. The range of y follows the firm lines; faint ones may be cut."""
    every = [p for t in traces if t.kind != "faint" for p in t.points] or [p for t in traces for p in t.points]
    xs, ys = [p[0] for p in every], [p[1] for p in every]
    low, high = widen(min(ys), max(ys), 5)
    y_at = ticks(low, high, 6)
    y_words = name_ticks(y_at, percent)
    left = 14 + 6.6 * max(map(len, y_words))
    x = Scale(min(0.0, *xs), max(xs) or 1.0, left, WIDTH - 14)
    y = Scale(low, high, HEIGHT - 42, 30)
    x_at = ticks(x.low, x.high, 6)
    body = [f'<clipPath id="{key}-c"><rect x="{left:g}" y="24" width="{x.end - left + 8:g}" height="{y.start - 24:g}"/></clipPath>',
            ground(x, y, list(zip(x_at, name_ticks(x_at), strict=True)), list(zip(y_at, y_words, strict=True)), x_name, y_name),
            f'<g clip-path="url(#{key}-c)">']
    for trace in sorted(traces, key=lambda t: t.kind != "faint"):
        places = [(x(a), y(b)) for a, b in thin(trace.points)]
        style = f"s{trace.colour % COLOURS}"
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        body.append(f'<polyline class="line {trace.kind} {style}" points="{path}"/>')
        if trace.kind == "dotted":
            body += [f'<circle class="dot {style}" cx="{a:.1f}" cy="{b:.1f}" r="2.6"/>' for a, b in places]
    body.append("</g>")
    for mark in marks:
        a, b = x(mark.x), y(mark.y)
        side = "end" if a > WIDTH * 0.6 else "start" if a < WIDTH * 0.3 else "middle"
        body.append(f'<circle class="ring s{mark.colour % COLOURS}" cx="{a:.1f}" cy="{b:.1f}" r="6"/>')
        if mark.words:
            body.append(f'<text class="mark" text-anchor="{side}" x="{a:.1f}" y="{b - 12:.1f}">{text(mark.words)}</text>')
    return drawing(key, WIDTH, HEIGHT, name, told, "".join(body))


def confusion(key: str, counts: Sequence[Sequence[int]], labels: Sequence[str], name: str, told: str) -> str:
    """Targets as rows, predictions as columns; the share of its row gives a cell its strength, its kind the colour."""
    cell = 34 if len(labels) <= 12 else 26 if len(labels) <= 20 else 21
    shown = [label if len(label) <= 18 else label[:17] + "…" for label in labels]
    longest = max(map(len, shown), default=1)
    left, top = 22 + 6.9 * longest, 30 + 5.4 * longest
    side = cell * len(labels)
    body = [f'<text class="name" x="{left:g}" y="12">predicted</text>',
            f'<text class="name" text-anchor="end" x="{left - 10:g}" y="{top - 8:g}">true</text>']
    for i, label in enumerate(shown):
        middle = (i + 0.5) * cell
        body.append(f'<text class="label" text-anchor="end" x="{left - 8:g}" y="{top + middle + 4:.1f}">{text(label)}</text>'
                    f'<text class="label" transform="translate({left + middle + 3:.1f} {top - 7:g}) rotate(-50)">{text(label)}</text>')
    for i, row in enumerate(counts):
        total = sum(row)
        for j, n in enumerate(row):
            strength = n / total if total else 0.0
            corner = f'x="{left + j * cell + 1:g}" y="{top + i * cell + 1:g}" width="{cell - 2}" height="{cell - 2}" rx="2.5"'
            if not n:
                body.append(f'<rect class="empty" {corner}/>')
                continue
            said = f"{n} of {total} with the label {labels[i]} were predicted {labels[j]}"
            body.append(
                f'<g><title>{text(said)}</title><rect class="{"right" if i == j else "wrong"}" {corner} '
                f'fill-opacity="{0.14 + 0.86 * strength:.2f}"/><text class="{"on" if strength > 0.5 else "off"}" text-anchor="middle" '
                f'x="{left + (j + 0.5) * cell:.1f}" y="{top + (i + 0.5) * cell + 4:.1f}">{n}</text></g>')
    # The last column's slanted name reaches past the grid.
    width = left + side + max(12, 4.6 * len(shown[-1]) - cell / 2 + 8)
    return drawing(key, width, top + side + 4, name, told, "".join(body))


def reliability(key: str, filled: Sequence[Bin], name: str, told: str) -> str:
    """Accuracy over confidence with 95 % whiskers, the diagonal of perfect calibration, and how many items each bin holds."""
    x = Scale(0, 1, 52, WIDTH - 14)
    y = Scale(0, 1, 258, 30)
    fifths = [i / 5 for i in range(6)]
    tall = Scale(0, max(b.items for b in filled), 0, 50)
    base = 366.0
    body = [ground(x, y, [(f, "") for f in fifths], [(f, f"{100 * f:.0f}\u00a0%") for f in fifths], "", "share that was right"),
            f'<line class="ideal" x1="{x(0):g}" y1="{y(0):g}" x2="{x(1):g}" y2="{y(1):g}"/>']
    for b in filled:
        at, low, high = x(b.confidence), *likely(b.accuracy, b.items)
        said = f"confidence {100 * b.low:.0f} to {100 * b.high:.0f} %: {b.items} items, {100 * b.accuracy:.0f} % right"
        left, right = x(b.low) + 1, x(b.high) - 1
        body.append(f'<g><title>{text(said)}</title><line class="whisker s0" x1="{at:.1f}" x2="{at:.1f}" y1="{y(low):.1f}" y2="{y(high):.1f}"/>'
                    f'<circle class="dot s0" cx="{at:.1f}" cy="{y(b.accuracy):.1f}" r="4"/>'
                    f'<rect class="bar s0" x="{left:.1f}" width="{right - left:.1f}" y="{base - tall(b.items):.1f}" '
                    f'height="{tall(b.items):.1f}"/>'
                    f'<text class="count" text-anchor="middle" x="{(left + right) / 2:.1f}" y="{base - tall(b.items) - 4:.1f}">{b.items}</text></g>')
    body.append(f'<text class="name" x="2" y="290">items</text><line class="axis" x1="{x.start:g}" x2="{x.end:g}" y1="{base:g}" y2="{base:g}"/>')
    body += [f'<text class="tick" text-anchor="middle" x="{x(f):.1f}" y="{base + 18:g}">{100 * f:.0f}{chr(160) + "%" if f else ""}</text>' for f in fifths]
    body.append(f'<text class="name" text-anchor="end" x="{x.end:g}" y="{base + 36:g}">confidence</text>')
    return drawing(key, WIDTH, base + 42, name, told, "".join(body))


def scatter(key: str, points: Sequence[tuple[float, float]], name: str, told: str) -> str:
    """Predicted over true values on equal axes, with the line where both agree."""
    low, high = widen(min(min(p) for p in points), max(max(p) for p in points), 5)
    at = ticks(low, high, 6)
    words = name_ticks(at)
    left = 14 + 6.6 * max(map(len, words))
    margin = (high - low) * 0.03
    x = Scale(low - margin, high + margin, left, WIDTH - 14)
    y = Scale(low - margin, high + margin, WIDTH - 42, 30)
    marks = list(zip(at, words, strict=True))
    strength = max(0.15, min(0.6, 40 / len(points) ** 0.5 / 4))
    body = [ground(x, y, marks, marks, "true", "predicted"),
            f'<line class="ideal" x1="{x(low):g}" y1="{y(low):g}" x2="{x(high):g}" y2="{y(high):g}"/>',
            f'<g fill-opacity="{strength:.2f}">']
    body += [f'<circle class="point s0" cx="{x(a):.1f}" cy="{y(b):.1f}" r="3.4"/>' for a, b in points]
    return drawing(key, WIDTH, WIDTH, name, told, "".join(body) + "</g>")

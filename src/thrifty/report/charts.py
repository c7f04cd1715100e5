"""The pictures, each a pure function from numbers to an SVG string.

The style gives the colours: blue for right and vermilion for wrong, which stay apart for the colour-blind
(Okabe and Ito, 2008).
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from unicodedata import east_asian_width

from thrifty.evaluate.calibration import Bin
from thrifty.report.axes import Scale, ground, name_ticks, ticks, widen
from thrifty.report.measure import likely
from thrifty.report.shapes import box, circle, drawing, line, slanted, told, words

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
    """A straight line fitted around each value and read off there: calm, without lag even at the ends of a falling curve."""
    sums, leaning = [0.0, *accumulate(values)], [0.0, *accumulate(i * v for i, v in enumerate(values))]
    reach = max(3, len(values) // 30)
    out = []
    for i in range(len(values)):
        first, last = max(0, i - reach), min(len(values), i + reach + 1)
        n, middle = last - first, (first + last - 1) / 2
        mean = (sums[last] - sums[first]) / n
        spread = n * (n * n - 1) / 12
        slope = (leaning[last] - leaning[first] - middle * n * mean) / spread if spread else 0.0
        out.append(mean + slope * (i - middle))
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


def lines(key: str, traces: Sequence[Trace], marks: Sequence[Mark], name: str, said: str,
          x_name: str, y_name: str, percent: bool = False) -> str:
    """Lines over a common x, some points singled out. The range of y follows the firm lines; faint ones may be cut."""
    every = [p for t in traces if t.kind != "faint" for p in t.points] or [p for t in traces for p in t.points]
    xs, ys = [p[0] for p in every], [p[1] for p in every]
    low, high = widen(min(ys), max(ys), 5)
    y_at = ticks(low, high, 6)
    y_words = name_ticks(y_at, percent)
    x, y = Scale(min(0.0, *xs), max(xs) or 1.0, _gutter(y_words), WIDTH - 14), Scale(low, high, HEIGHT - 42, 30)
    x_at = ticks(x.low, x.high, 6)
    window = box("", x.start, 24, x.end - x.start + 8, y.start - 24)
    body = [f'<clipPath id="{key}-c">{window}</clipPath>',
            ground(x, y, list(zip(x_at, name_ticks(x_at), strict=True)), list(zip(y_at, y_words, strict=True)), x_name, y_name),
            f'<g clip-path="url(#{key}-c)">',
            *(_drawn(trace, x, y) for trace in sorted(traces, key=lambda trace: trace.kind != "faint")), "</g>"]
    for mark in marks:
        a, b = x(mark.x), y(mark.y)
        side = "end" if a > WIDTH * 0.6 else "start" if a < WIDTH * 0.3 else "middle"
        body.append(circle(f"ring s{mark.colour % COLOURS}", a, b, 6))
        if mark.words:
            body.append(words("mark", a, b - 12, mark.words, side))
    return drawing(key, WIDTH, HEIGHT, name, said, "".join(body))


def _drawn(trace: Trace, x: Scale, y: Scale) -> str:
    places = [(x(a), y(b)) for a, b in thin(trace.points)]
    colour = f"s{trace.colour % COLOURS}"
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    dots = [circle(f"dot {colour}", a, b, 2.6) for a, b in places] if trace.kind == "dotted" else []
    return f'<polyline class="line {trace.kind} {colour}" points="{path}"/>' + "".join(dots)


def confusion(key: str, counts: Sequence[Sequence[int]], labels: Sequence[str], name: str, said: str) -> str:
    """Targets as rows, predictions as columns; the share of its row gives a cell its strength, its kind the colour."""
    cell = confusion_cell(len(labels))
    shown = [_cut(label, 18) for label in labels]
    longest = max(map(_columns, shown), default=1)
    left, top = 22 + 6.9 * longest, 30 + 5.4 * longest
    side = cell * len(labels)
    body = [words("name", left, 12, "predicted"), words("name", left - 10, top - 8, "true", "end")]
    for i, label in enumerate(shown):
        middle = (i + 0.5) * cell
        body += [words("label", left - 8, top + middle + 4, label, "end"), slanted("label", left + middle + 3, top - 7, label)]
    for i, row in enumerate(counts):
        for j, n in enumerate(row):
            body.append(_cell(left + j * cell, top + i * cell, cell, n, sum(row), labels[i], labels[j]))
    # The last column's slanted name reaches past the grid.
    width = left + side + max(12, 4.6 * _columns(shown[-1]) - cell / 2 + 8)
    return drawing(key, width, top + side + 4, name, said, "".join(body))


def confusion_cell(labels: int) -> int:
    """The side of one cell: smaller where there are many."""
    return 34 if labels <= 12 else 26 if labels <= 20 else 22


def _cell(x: float, y: float, side: int, n: int, total: int, target: str, prediction: str) -> str:
    if not n:
        return box("empty", x + 1, y + 1, side - 2, side - 2, round_=2.5)
    share = n / total
    return told(f"{n} of {total} with the label {target} were predicted {prediction}",
                box("right" if target == prediction else "wrong", x + 1, y + 1, side - 2, side - 2, 0.14 + 0.86 * share, 2.5),
                words("on" if share > 0.5 else "off", x + side / 2, y + side / 2 + 4, n, "middle"))


def reliability(key: str, bins: Sequence[Bin], name: str, said: str) -> str:
    """Accuracy over confidence with 95 % whiskers, the diagonal of perfect calibration, and how many items each bin holds."""
    x, y, floor = Scale(0, 1, 52, WIDTH - 14), Scale(0, 1, 258, 30), 366.0
    tall = Scale(0, max(b["items"] for b in bins), 0, 50)
    fifths = list(zip([i / 5 for i in range(6)], name_ticks([i / 5 for i in range(6)], percent=True), strict=True))
    body = [ground(x, y, [(at, "") for at, _ in fifths], fifths, "", "share that was right"),
            line("ideal", x(0), y(0), x(1), y(1))]
    body += [_bin(b, x, y, floor, tall(b["items"])) for b in bins]
    body += [words("name", 2, 290, "items"), line("axis", x.start, floor, x.end, floor)]
    body += [words("tick", x(at), floor + 18, word, "middle") for at, word in fifths]
    body.append(words("name", x.end, floor + 36, "confidence", "end"))
    return drawing(key, WIDTH, floor + 42, name, said, "".join(body))


def _bin(b: Bin, x: Scale, y: Scale, floor: float, height: float) -> str:
    """One bin of a reliability diagram: a point with whiskers, and a bar of ``height`` on the ``floor``; nothing if empty."""
    if b["confidence"] is None or b["accuracy"] is None:
        return ""
    at = x(b["confidence"])
    low, high = likely(b["accuracy"], b["items"])
    left, right = x(b["low"]) + 1, x(b["high"]) - 1
    said = f"confidence {100 * b['low']:.0f} to {100 * b['high']:.0f} %: {b['items']} items, {100 * b['accuracy']:.0f} % right"
    return told(said, line("whisker s0", at, y(low), at, y(high)), circle("dot s0", at, y(b["accuracy"]), 4),
                box("bar s0", left, floor - height, right - left, height),
                words("count", (left + right) / 2, floor - height - 4, b["items"], "middle"))


def scatter(key: str, points: Sequence[tuple[float, float]], name: str, said: str) -> str:
    """Predicted over true values on equal axes, with the line where both agree."""
    low, high = min(min(p) for p in points), max(max(p) for p in points)
    margin = (high - low) * 0.05 or abs(low) * 0.1 or 1.0
    low, high = low - margin, high + margin
    at = ticks(low, high, 6)
    marks = list(zip(at, name_ticks(at), strict=True))
    x, y = Scale(low, high, _gutter([word for _, word in marks]), WIDTH - 14), Scale(low, high, WIDTH - 42, 30)
    strength = max(0.15, min(0.6, 10 / len(points) ** 0.5))
    body = [ground(x, y, marks, marks, "true", "predicted"), line("ideal", x(low), y(low), x(high), y(high)),
            f'<g fill-opacity="{strength:.2f}">', *(circle("point s0", x(a), y(b), 3.4) for a, b in points), "</g>"]
    return drawing(key, WIDTH, WIDTH, name, said, "".join(body))


def _columns(said: str) -> int:
    """How wide a text is, in letters: ideographs and pictograms take two."""
    return sum(2 if east_asian_width(letter) in "WF" else 1 for letter in said)


def _cut(said: str, most: int) -> str:
    """As much of a text as fits into ``most`` columns."""
    if _columns(said) <= most:
        return said
    while _columns(said) > most - 1:
        said = said[:-1]
    return said.rstrip() + "…"


def _gutter(names: Sequence[str]) -> float:
    """The room that the names of the ticks need at the left."""
    return 14 + 6.6 * max(map(len, names))

"""Regression: how near the predicted numbers are to the true ones."""
from __future__ import annotations

from statistics import fmean

from thrifty.report import charts, numbers
from thrifty.report.examples import quote, row, unlike
from thrifty.report.files import Prediction
from thrifty.report.markup import cards, facts, figure, note, section
from thrifty.report.reading import Results

MOST_DRAWN = 3000   # points


def agreement(results: Results) -> str:
    """Predicted over true numbers, and the mean errors."""
    points = [_numbers(p) for p in results.predictions]
    if not points:
        return section("Predicted and true", "", note("The folder holds no test predictions, so there are no errors to show."))
    mean, size = fmean(b - a for a, b in points), fmean(abs(b - a) for a, b in points)
    shown = points[:: -(-len(points) // MOST_DRAWN)]
    said = f"mean absolute error {size:.3g}, mean error {mean:.3g}"
    chart = charts.scatter(f"{results.key}scatter", shown, "Predicted over true values", said)
    side = facts([("Mean absolute error", numbers.plain(size), "in the units of the target"),
                  ("Mean error", numbers.plain(mean), "predicted minus true")])
    cut = f" {numbers.count(len(shown))} of {numbers.count(len(points))} points are drawn." if len(shown) < len(points) else ""
    remark = f"On the dashed line both agree{results.pooled}.{cut}"
    return section("Predicted and true", remark, f'<div class="pair">{figure(chart)}{side}</div>')


def far(results: Results) -> str:
    """The test items whose predicted number is farthest from the true one."""
    worst = unlike(sorted(results.predictions, key=_distance, reverse=True))
    if not worst:
        return ""
    shown = []
    for p in worst:
        true, said = _numbers(p)
        fate = f'predicted <b class="bad">{numbers.plain(said)}</b>, true <b class="good">{numbers.plain(true)}</b>'
        shown.append(row(p, f'<div>{quote(p)}<p class="fate">{fate}</p></div>'))
    return section("Largest errors", "The test items predicted farthest from the truth.", cards(shown))


def _numbers(p: Prediction) -> tuple[float, float]:
    """The true and the predicted number; ``check_prediction`` has made sure that they are."""
    return float(p["target"]), float(p["prediction"])  # type: ignore[arg-type]


def _distance(p: Prediction) -> float:
    true, said = _numbers(p)
    return abs(said - true)

"""Whether the model is as often right as it is sure."""
from __future__ import annotations

from statistics import fmean

from thrifty.evaluate.calibration import BINS, calibration_bins, expected_calibration_error
from thrifty.evaluate.classification import negative_log_likelihood
from thrifty.report import charts, numbers
from thrifty.report.files import Prediction
from thrifty.report.markup import facts, figure, legend, note, section
from thrifty.report.reading import Results

ABSENT = "The run kept no probabilities, so how sure it was cannot be compared with how often it was right."


def calibration(results: Results) -> str:
    """The reliability diagram, the expected calibration error and the likelihood."""
    labels = results.metrics["labels"]
    scored = [p for p in results.predictions if p["scores"]]
    if not scored:
        return section("Calibration", "", note(ABSENT))
    sure = [probability(p, p["prediction"], labels) for p in scored]
    right = [p["target"] == p["prediction"] for p in scored]
    target = [_place(p["target"], labels) for p in scored]
    rows = _even([p["scores"] or [] for p in scored])
    gap = 100 * (fmean(sure) - fmean(right))
    said = (f"On average the model is {abs(gap):.1f} points {'more' if gap > 0 else 'less'} sure than it is right."
            if abs(gap) >= 0.05 else "On average the model is as sure as it is right.")
    error = f"{100 * float(expected_calibration_error(target, rows)):.1f}{numbers.GAP}points"
    likelihood = float(negative_log_likelihood(target, rows))
    chart = charts.reliability(f"{results.key}calibration", calibration_bins(target, rows), "Reliability diagram",
                               f"{said} Expected calibration error {error}.")
    drawn = figure(chart, legend([("ideal", "as often right as sure"), ("box s0", f"items, with 95{numbers.GAP}% intervals")]))
    side = facts([("Expected calibration error", error, f"{BINS} bins of equal width"),
                  ("Negative log likelihood", f"{likelihood:.3f}", "nats per item"),
                  ("Mean confidence", numbers.percent(fmean(sure)), f"right: {numbers.percent(fmean(right))}")])
    remark = f"{said} A point under the line is overconfidence{results.pooled}."
    return section("Calibration", remark, f'<div class="pair">{drawn}{side}</div>')


def probability(row: Prediction, value: object, labels: list[str] | None) -> float:
    """What ``row`` gave to ``value``: a label, or the index of a choice."""
    return (row["scores"] or [])[_place(value, labels)]


def _place(value: object, labels: list[str] | None) -> int:
    return value if isinstance(value, int) else (labels or []).index(str(value))


def _even(rows: list[list[float]]) -> list[list[float]]:
    """Rows of one length: where questions differ in how many choices they have, what is no choice has no probability."""
    width = max(map(len, rows))
    return [row + [0.0] * (width - len(row)) for row in rows]

"""Whether the model is as often right as it is sure."""
from __future__ import annotations

from statistics import fmean

from thrifty.report import charts, measure, numbers
from thrifty.report.markup import facts, figure, legend, note, section
from thrifty.report.reading import Results
from thrifty.report.schema import Prediction

ABSENT = "The run kept no probabilities, so how sure it was cannot be compared with how often it was right."


def calibration(results: Results) -> str:
    """The reliability diagram, the expected calibration error and the likelihood."""
    labels = results.metrics["labels"]
    scored = [p for p in results.predictions if p["scores"]]
    if not scored:
        return section("Calibration", "", note(ABSENT))
    sure = [probability(p, p["prediction"], labels) for p in scored]
    right = [p["target"] == p["prediction"] for p in scored]
    filled = measure.bins(sure, right)
    gap = 100 * (fmean(sure) - fmean(right))
    said = (f"On average the model is {abs(gap):.1f} points {'more' if gap > 0 else 'less'} sure than it is right."
            if abs(gap) >= 0.05 else "On average the model is as sure as it is right.")
    error = f"{100 * measure.calibration_error(filled):.1f}{numbers.GAP}points"
    likelihood = measure.likelihood([probability(p, p["target"], labels) for p in scored])
    chart = charts.reliability("calibration", filled, "Reliability diagram", f"{said} Expected calibration error {error}.")
    drawn = figure(chart, legend([("ideal", "as often right as sure"), ("box s0", f"items, with 95{numbers.GAP}% intervals")]))
    side = facts([("Expected calibration error", error, "15 bins of equal width"),
                  ("Negative log likelihood", f"{likelihood:.3f}", "nats per item"),
                  ("Mean confidence", numbers.percent(fmean(sure)), f"right: {numbers.percent(fmean(right))}")])
    remark = f"{said} A point under the line is overconfidence{results.pooled}."
    return section("Calibration", remark, f'<div class="pair">{drawn}{side}</div>')


def probability(row: Prediction, value: object, labels: list[str] | None) -> float:
    """What ``row`` gave to ``value``: a label, or the index of a choice."""
    scores = row["scores"] or []
    return scores[value if isinstance(value, int) else (labels or []).index(str(value))]

"""Every test metric in one table, beside the same metrics of the baselines."""
from __future__ import annotations

from thrifty.report import numbers
from thrifty.report.files import Estimate
from thrifty.report.headline import rivals
from thrifty.report.markup import section, table, text
from thrifty.report.reading import Results


def values(results: Results) -> str:
    """The table; nothing if there is only the one metric that the headline shows."""
    metrics = results.metrics
    if len(metrics["test"]) < 2:
        return ""
    measured = [b for b in rivals(metrics) if b["test"]]
    rows = [[text(numbers.title(name)), _estimate(name, estimate), *(_estimate(name, b["test"].get(name)) for b in measured)]
            for name, estimate in metrics["test"].items()]
    head = ["", "this run", *(text(b["title"]) for b in measured)]
    return section("All test metrics", f"With 95{numbers.GAP}% intervals.", table(head, rows))


def _estimate(metric: str, estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    shown = numbers.value(metric, estimate["value"])
    if estimate["low"] is None:
        return shown
    return f"{shown} <small>{numbers.interval(metric, estimate['low'], estimate['high'])}</small>"

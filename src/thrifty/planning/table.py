"""A plan as people read it: one line for each method, and what would make the others fit."""
from __future__ import annotations

from typing import Any

from thrifty.planning.forecast import Forecast
from thrifty.planning.forecasting import Plan
from thrifty.report import numbers

HEADS = ("method", "peak", "in a step", "weights", "gradients", "optimizer", "activations", "workspace", "a step", "in all",
         "trains", "adapter", "adds at inference", "fits")


def write(plan: Plan) -> str:
    """The whole plan as text."""
    rows = [_row(forecast, bool(plan.budget)) for forecast in plan.forecasts]
    wide = [max(len(row[i]) for row in (HEADS, *rows)) for i in range(len(HEADS))]
    lines = [_about(plan.about), ""]
    for name, *cells in (HEADS, *rows) if rows else ():
        right = [cell.rjust(width) for cell, width in zip(cells, wide[1:], strict=True)]
        lines.append("  ".join([name.ljust(wide[0]), *right]).rstrip())
    lines += _ways(plan)
    if plan.refused:
        lines += ["", "Not predicted:", *(f"  {name}: {why}" for name, why in plan.refused.items())]
    return "\n".join([*lines, "", _small(plan)])


def _ways(plan: Plan) -> list[str]:
    """What would make those methods fit that do not, each way once."""
    by_way: dict[str, list[str]] = {}
    for forecast in plan.forecasts:
        if not forecast.fits:
            ways = "; ".join(each.words for each in forecast.remedies) or "nothing that was tried"
            by_way.setdefault(ways, []).append(forecast.method)
    return ["", *(f"{', '.join(methods)} would fit with {ways}" for ways, methods in by_way.items())] if by_way else []


def _row(forecast: Forecast, limited: bool) -> tuple[str, ...]:
    memory, time = forecast.memory, forecast.time
    parts = (memory.peak, memory.step, memory.weights + memory.kept + memory.best, memory.gradients, memory.optimizer,
             memory.activations, memory.workspace)
    step = "–" if time is None else numbers.seconds(time.step)
    whole = "–" if time is None or time.total is None else numbers.seconds(time.total)
    if forecast.affordable is not None:
        whole = f"{forecast.affordable:,} steps"
    fits = "" if not limited else "yes" if forecast.fits else f"no ({' and '.join(forecast.over)})"
    return (forecast.method, *map(numbers.size, parts), step, whole, numbers.short(forecast.trainable),
            numbers.size(forecast.adapter), _added(forecast), fits)


def _added(forecast: Forecast) -> str:
    """What an answer costs more than the model's own, for one example."""
    flops, time = forecast.flops, forecast.time
    if flops is None:
        return "–"
    if flops == 0:
        return "nothing"
    said = f"{'−' if flops < 0 else ''}{numbers.short(abs(flops))} FLOP"
    return said if time is None or time.added is None else f"{said}, {1000 * time.added:,.1f} ms"


def _about(about: dict[str, Any]) -> str:
    longest = f" of at most {about['longest']} tokens" if about["longest"] else ""
    rows = f", {about['rows'][0]:,} training rows" if about["rows"] else ""
    steps = f"batches of {about['batch']}" + (f" × {about['accumulate']}" if about["accumulate"] > 1 else "")
    return f"{about['model']}, {about['task']}, {steps}{longest}{rows}, {about['precision']} on {about['device']}"


def _small(plan: Plan) -> str:
    machine = plan.about["machine"]
    said = ("Memory is that of tensors; Python, libraries, data and what the allocator keeps come on top. The peak may lie outside "
            "of a step, while a checkpoint is written. Under weights stands all that is held between steps beside gradients and "
            "optimizer.")
    if machine is None:
        return said + f" No times: this machine only emulates {plan.about['precision']}."
    if any(forecast.affordable is not None for forecast in plan.forecasts):
        said += " How long a training takes depends on its rows (--data or --rows); \"in all\" are the steps that the time allows."
    return said + (f" Times are predicted for {machine['name']} (threads: {machine['threads']}), without early stopping and "
                   "without reading data.")

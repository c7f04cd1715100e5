"""How the run learned: training loss by step, the validation metric by evaluation, one line per seed."""
from __future__ import annotations

from thrifty.report import charts, numbers
from thrifty.report.charts import COLOURS, Mark, Trace
from thrifty.report.files import Seed
from thrifty.report.markup import figure, legend, note, section
from thrifty.report.reading import Results

REMARK = "The training loss of every step, faint, and smoothed. The weights of the best evaluation were kept."


def learning(results: Results) -> str:
    """Both curves, side by side where there is room."""
    seeds, metric = results.metrics["seeds"], results.metrics["metric"]
    curves = _losses(seeds) + scores(seeds, metric, "score")
    if not curves:
        return section("Learning curve", "", note("The run recorded no steps."))
    return section("Learning curve", REMARK, f'<div class="pair">{curves}</div>')


def _losses(seeds: list[Seed]) -> str:
    traces: list[Trace] = []
    said: list[str] = []
    for i, seed in enumerate(seeds):
        raw = [(float(s["step"]), s["loss"]) for s in seed["history"] if s["loss"] is not None]
        if raw:
            calm = charts.smooth([loss for _, loss in raw])
            traces += [Trace(raw, i, "faint"), Trace([(step, mean) for (step, _), mean in zip(raw, calm, strict=True)], i)]
            said.append(f"seed {seed['seed']}: from {raw[0][1]:.3g} to {raw[-1][1]:.3g} in {len(raw)} recorded steps")
        held = [(float(e["step"]), e["values"]["loss"]) for e in seed["evaluations"] if "loss" in e["values"]]
        if held:
            traces.append(Trace(held, i, "dashed"))
    if not traces:
        return ""
    chart = charts.lines("loss", traces, [], "Training loss by step", "; ".join(said), "step", "loss")
    entries = [("s0", "training")]
    if len(seeds) > 1:
        entries = [(f"s{i % COLOURS}", f"seed {s['seed']}") for i, s in enumerate(seeds)]
    if any(trace.kind == "dashed" for trace in traces):
        entries.append(("dashed" if len(seeds) > 1 else "dashed s0", "validation"))
    return figure(chart, legend(entries))


def scores(seeds: list[Seed], metric: str, key: str) -> str:
    """The validation metric by evaluation, as the chart ``key``."""
    traces: list[Trace] = []
    marks: list[Mark] = []
    for i, seed in enumerate(seeds):
        points = [(float(e["step"]), e["values"][metric]) for e in seed["evaluations"]]
        if points:
            traces.append(Trace(points, i, "dotted" if len(points) <= 60 else "firm"))
        marks += [Mark(*p, _best(seed, metric) if len(seeds) == 1 else "", i) for p in points if p[0] == seed["best_step"]]
    if not traces:
        return ""
    name = numbers.title(metric)
    named = [f"seed {s['seed']}: {_best(s, metric)}" for s in seeds]
    chart = charts.lines(key, traces, marks, f"Validation {name} by step", "; ".join(named), "step", f"validation {name}",
                         numbers.is_fraction(metric))
    return figure(chart, legend((f"s{i % COLOURS}", words) for i, words in enumerate(named)) if len(seeds) > 1 else "")


def _best(seed: Seed, metric: str) -> str:
    for evaluation in seed["evaluations"]:
        if evaluation["step"] == seed["best_step"]:
            return f"best {numbers.value(metric, evaluation['values'][metric])}, step {numbers.count(evaluation['step'])}"
    return "no best step"

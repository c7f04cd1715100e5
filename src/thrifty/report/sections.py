"""The parts of the page between the headline and the examples: learning, errors by class, calibration, cost."""
from __future__ import annotations

from thrifty.report import charts, measure, numbers
from thrifty.report.charts import Mark, Trace
from thrifty.report.markup import facts, figure, legend, section, table, text
from thrifty.report.reading import Results
from thrifty.report.schema import Estimate, Metrics, Prediction, Seed

MOST_DRAWN = 30     # classes in a confusion matrix
MOST_LISTED = 40    # classes in the open table


def all_metrics(results: Results) -> str:
    """Every test metric of the run and of the baselines; nothing if there is only the one in the headline."""
    metrics = results.metrics
    rivals = [(b["title"], b["test"]) for b in metrics["baselines"] if b["test"]]
    if len(metrics["test"]) < 2:
        return ""
    rows = [[text(numbers.title(name)), _estimate(name, estimate), *(_estimate(name, test.get(name)) for _, test in rivals)]
            for name, estimate in metrics["test"].items()]
    return section("All test metrics", f"With 95{numbers.GAP}% intervals.", table(["", "this run", *(text(t) for t, _ in rivals)], rows))


def learning(results: Results) -> str:
    """Training loss by step, and the validation metric by evaluation, one line per seed."""
    seeds, metric = results.metrics["seeds"], results.metrics["metric"]
    charts_ = [drawn for drawn in (_losses(seeds), _scores(seeds, metric)) if drawn]
    if not charts_:
        return section("Learning curve", "", '<p class="note">The run recorded no steps.</p>')
    return section("Learning curve", "The training loss of every step, faint, and its running mean. The weights of the best evaluation were kept.",
                   f'<div class="pair">{"".join(charts_)}</div>')


def _losses(seeds: list[Seed]) -> str:
    traces: list[Trace] = []
    for i, seed in enumerate(seeds):
        raw = [(float(s["step"]), s["loss"]) for s in seed["history"] if s["loss"] is not None]
        if raw:
            calm = list(zip((a for a, _ in raw), charts.smooth([b for _, b in raw]), strict=True))
            traces += [Trace(raw, i, "faint"), Trace(calm, i)]
        held = [(float(e["step"]), e["values"]["loss"]) for e in seed["evaluations"] if "loss" in e["values"]]
        if held:
            traces.append(Trace(held, i, "dashed"))
    if not traces:
        return ""
    chart = charts.lines("loss", traces, [], "Training loss by step", _told_losses(seeds), "step", "loss")
    entries = [("s0", "training")] if len(seeds) == 1 else [(f"s{i % charts.COLOURS}", f"seed {s['seed']}") for i, s in enumerate(seeds)]
    if any(t.kind == "dashed" for t in traces):
        entries.append(("dashed s0" if len(seeds) == 1 else "dashed", "validation"))
    return figure(chart, legend(entries))


def _told_losses(seeds: list[Seed]) -> str:
    ends = [(s["seed"], [h["loss"] for h in s["history"] if h["loss"] is not None]) for s in seeds]
    return "; ".join(f"seed {seed}: from {values[0]:.3g} to {values[-1]:.3g} in {len(values)} recorded steps" for seed, values in ends if values)


def _scores(seeds: list[Seed], metric: str) -> str:
    traces, marks, told = [], [], []
    for i, seed in enumerate(seeds):
        points = [(float(e["step"]), e["values"][metric]) for e in seed["evaluations"]]
        if not points:
            continue
        traces.append(Trace(points, i, "dotted" if len(points) <= 60 else "firm"))
        best = [p for p in points if p[0] == seed["best_step"]]
        if best:
            words = f"best {numbers.value(metric, best[0][1])}, step {numbers.count(int(best[0][0]))}"
            marks.append(Mark(*best[0], words if len(seeds) == 1 else "", i))
            told.append(f"seed {seed['seed']}: {words}")
    if not traces:
        return ""
    name = numbers.title(metric)
    chart = charts.lines("score", traces, marks, f"Validation {name} by step", "; ".join(told), "step", f"validation {name}",
                         numbers.is_fraction(metric))
    entries = [(f"s{i % charts.COLOURS}", f"seed {s['seed']}: {_best(s, metric)}") for i, s in enumerate(seeds)]
    return figure(chart, legend(entries) if len(seeds) > 1 else "")


def _best(seed: Seed, metric: str) -> str:
    for evaluation in seed["evaluations"]:
        if evaluation["step"] == seed["best_step"]:
            return f"best {numbers.value(metric, evaluation['values'][metric])}, step {numbers.count(evaluation['step'])}"
    return "no best step"


def errors(results: Results) -> str:
    """Which class was taken for which, and precision, recall and F1 of each."""
    labels = results.metrics["labels"] or []
    pairs = [(str(p["target"]), str(p["prediction"])) for p in results.predictions]
    if not pairs:
        return section("Errors by class", "", _absent("errors"))
    counts = measure.confusion(pairs, labels)
    wrong = sum(a != b for a, b in pairs)
    told = f"{wrong} of {len(pairs)} predictions are wrong"
    if len(labels) <= MOST_DRAWN:
        cell = 34 if len(labels) <= 12 else 26
        chart = charts.confusion("confusion", counts, labels, "Confusion matrix", told)
        width = min(760, max(300, cell * len(labels) + 190))
        drawn = figure(f'<div class="grid-chart"><div style="min-width:{min(width, 26 * len(labels) + 60)}px;max-width:{width}px">{chart}</div></div>',
                       legend([("box good", "right"), ("box bad", "wrong; stronger where a larger share of the row")]))
    else:
        rows = [[text(labels[i]), text(labels[j]), numbers.count(n), numbers.percent(n / sum(counts[i]))]
                for i, j, n in measure.mixed_up(counts)]
        drawn = f'<div><h3>The pairs confused most</h3>{table(["true", "predicted as", "items", "of the true"], rows, "words")}</div>'
    remark = f"{told}{_pooled(results.metrics)}. Rows are what is true, columns what was predicted."
    return section("Errors by class", remark, drawn + _label_table(labels, measure.label_scores(counts), "class"))


def entities(results: Results) -> str:
    """Precision, recall and F1 of each kind of entity."""
    if not results.predictions:
        return section("Entities", "", _absent("entities"))
    scores = measure.entity_scores((_tags(p["target"]), _tags(p["prediction"])) for p in results.predictions)
    return section("Entities", f"An entity counts as found if its kind and both its ends are right{_pooled(results.metrics)}.",
                   _label_table(list(scores), list(scores.values()), "entity"))


def _tags(value: object) -> list[str]:
    return [str(tag) for tag in value] if isinstance(value, list) else []


def _label_table(labels: list[str], scores: list[measure.Score], what: str) -> str:
    order = sorted(range(len(labels)), key=lambda i: (scores[i].f1 is None, scores[i].f1 or 0.0))
    rows = [[text(labels[i]), numbers.count(scores[i].items), _share(scores[i].precision), _share(scores[i].recall),
             _meter(scores[i].f1) + _share(scores[i].f1)] for i in order]
    head = [what, "items", "precision", "recall", "F1"]
    shown = f"<div><h3>By {what}, weakest first</h3>{table(head, rows[:MOST_LISTED])}</div>"
    if len(rows) > MOST_LISTED:
        shown += f"<details><summary>The other {len(rows) - MOST_LISTED}</summary><div>{table(head, rows[MOST_LISTED:])}</div></details>"
    return shown


def calibration(results: Results) -> str:
    """Whether the model is as often right as it is sure."""
    scored = [p for p in results.predictions if p["scores"]]
    if not scored:
        return section("Calibration", "", '<p class="note">The run kept no probabilities, so how sure it was cannot be compared with how often it was right.</p>')
    labels = results.metrics["labels"]
    sure = [confidence(p, labels) for p in scored]
    right = [p["target"] == p["prediction"] for p in scored]
    filled = measure.bins(sure, right)
    gap = sum(sure) / len(sure) - sum(right) / len(right)
    error, nll = measure.calibration_error(filled), measure.likelihood([given(p, labels) for p in scored])
    told = (f"On average the model is {abs(100 * gap):.1f} points {'more' if gap > 0 else 'less'} sure than it is right."
            if abs(gap) >= 0.0005 else "On average the model is as sure as it is right.")
    chart = charts.reliability("calibration", filled, "Reliability diagram", f"{told} Expected calibration error {100 * error:.1f} points.")
    side = facts([("Expected calibration error", f"{100 * error:.1f}{numbers.GAP}points", "15 bins of equal width"),
                  ("Negative log likelihood", f"{nll:.3f}", "nats per item"),
                  ("Mean confidence", numbers.percent(sum(sure) / len(sure)), f"right: {numbers.percent(sum(right) / len(right))}")])
    drawn = figure(chart, legend([("ideal", "as often right as sure"), ("box s0", f"items, with 95{numbers.GAP}% intervals")]))
    return section("Calibration", f"{told} A point under the line is overconfidence{_pooled(results.metrics)}.", f'<div class="pair">{drawn}{side}</div>')


def confidence(row: Prediction, labels: list[str] | None) -> float:
    """The probability given to what was predicted."""
    return _given(row, row["prediction"], labels)


def given(row: Prediction, labels: list[str] | None) -> float:
    """The probability given to what is true."""
    return _given(row, row["target"], labels)


def _given(row: Prediction, value: object, labels: list[str] | None) -> float:
    scores = row["scores"] or []
    return scores[value if isinstance(value, int) else (labels or []).index(str(value))]


def agreement(results: Results) -> str:
    """Predicted over true numbers."""
    points = [(float(p["target"]), float(p["prediction"])) for p in results.predictions
              if isinstance(p["target"], int | float) and isinstance(p["prediction"], int | float)]
    if not points:
        return section("Predicted and true", "", _absent("errors"))
    gaps = [b - a for a, b in points]
    mean, size = sum(gaps) / len(gaps), sum(map(abs, gaps)) / len(gaps)
    shown = points[:: -(-len(points) // 3000)]
    chart = charts.scatter("scatter", shown, "Predicted over true values", f"mean absolute error {size:.3g}, mean error {mean:.3g}")
    side = facts([("Mean absolute error", _plain(size), "in the units of the target"),
                  ("Mean error", _plain(mean), "predicted minus true")])
    cut = f" {numbers.count(len(shown))} of {numbers.count(len(points))} points are drawn." if len(shown) < len(points) else ""
    return section("Predicted and true", f"On the dashed line both agree{_pooled(results.metrics)}.{cut}",
                   f'<div class="pair">{figure(chart)}{side}</div>')


def cost(results: Results) -> str:
    """What was trained and what it took."""
    m = results.metrics
    parameters, memory, timing = m["parameters"], m["memory"], m["timing"]
    trained = parameters["tuner"] + parameters["head"]
    rate = timing["examples_per_second"]
    over = f"over {len(m['seeds'])} seeds" if len(m["seeds"]) > 1 else ""
    entries = [
        ("Trainable parameters", numbers.count(trained), f"{numbers.share(trained, parameters['base'])} of {numbers.short(parameters['base'])} in the base"),
        ("of these in the tuner", numbers.count(parameters["tuner"]), f"{numbers.share(parameters['tuner'], parameters['base'])} of the base"),
        ("of these in the head", numbers.count(parameters["head"]), f"{numbers.share(parameters['head'], parameters['base'])} of the base"),
        ("Adapter on disk", "–" if m["adapter_bytes"] is None else numbers.size(m["adapter_bytes"]), "" if m["adapter_bytes"] is not None else "not saved"),
        ("Peak memory", "–" if memory["peak_bytes"] is None else numbers.size(memory["peak_bytes"]),
         "not measured" if memory["peak_bytes"] is None else "of the process" if memory["kind"] == "process" else "on the accelerator"),
        ("Time to train", numbers.seconds(timing["train_seconds"]), over),
        ("Time to evaluate", numbers.seconds(timing["evaluate_seconds"]), over),
        ("Steps", numbers.count(timing["steps"]), over),
        ("Speed", "–" if rate is None else f"{rate:,.{0 if rate >= 10 else 1}f}{numbers.GAP}/{numbers.GAP}s", "training examples" if rate is not None else "not measured")]
    return section("Cost", "What was trained, and what it took.", facts(entries))


def _estimate(metric: str, estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    known = f" <small>{numbers.interval(metric, estimate['low'], estimate['high'])}</small>" if estimate["low"] is not None else ""
    return numbers.value(metric, estimate["value"]) + known


def _share(value: float | None) -> str:
    return "–" if value is None else numbers.percent(value)


def _meter(value: float | None) -> str:
    return f'<span class="meter" aria-hidden="true"><i style="width:{100 * (value or 0):.0f}%"></i></span>'


def _plain(value: float) -> str:
    return numbers.value("", value)


def _pooled(metrics: Metrics) -> str:
    return f", counted over all {len(metrics['seeds'])} seeds" if len(metrics["seeds"]) > 1 else ""


def _absent(what: str) -> str:
    return f'<p class="note">The folder holds no test predictions, so there are no {what} to show.</p>'

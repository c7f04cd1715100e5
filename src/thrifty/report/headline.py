"""What came out, in one look: the run, its number beside what it had to beat, the verdict, and what to be wary of."""
from __future__ import annotations

from datetime import datetime

from thrifty.report import numbers
from thrifty.report.files import Baseline, Estimate, Metrics
from thrifty.report.forest import Line, forest
from thrifty.report.markup import text

Row = tuple[str, str, Estimate]


def headline(metrics: Metrics) -> str:
    """The top of the page, down to the warnings."""
    return (f'<div class="eyebrow">{_when(metrics["created"])}</div>'
            f'<h1>{text(brief(metrics["model"]))} <small>adapted to</small> {text(brief(metrics["data"]))} '
            f'<small>with</small> {text(metrics["method"])}</h1>'
            f'<p class="about">{_about(metrics)}</p>{result(metrics)}{verdicts(metrics)}{_warnings(metrics)}')


def brief(name: str) -> str:
    """The last part of a path; hub ids such as ``owner/name`` and plain names stay whole."""
    parts = [part for part in name.replace("\\", "/").split("/") if part]
    local = name.startswith((".", "/", "~")) or "\\" in name or len(parts) > 2
    return parts[-1] if local and parts else name


def verdict(metric: str, baseline: Baseline, items: int) -> tuple[str, str]:
    """Whether the run beat ``baseline``: "better", "worse" or "equal", and the sentence that says so."""
    gap = baseline["difference"]
    if gap is None:
        return "equal", f"Not compared with {baseline['title']}."
    said = numbers.difference(metric, gap["value"], gap["low"], gap["high"])
    if gap["low"] is None or gap["high"] is None:
        return "equal", f"Beside {baseline['title']}: {said}, so it may be chance."
    if gap["low"] > 0:
        return "better", f"Better than {baseline['title']}: {said}."
    if gap["high"] < 0:
        return "worse", f"Worse than {baseline['title']}: {said}."
    return "equal", f"Cannot be told apart from {baseline['title']} on {numbers.count(items)} test items ({said})."


def rivals(metrics: Metrics) -> list[Baseline]:
    """The baselines, strongest first: beating the majority class says little once the linear head is beaten."""
    return sorted(metrics["baselines"], key=lambda b: -b["test"][metrics["metric"]]["value"] if b["test"] else 0)


def notices(metrics: Metrics) -> list[str]:
    """Everything to be wary of: the warnings of the run, then the seeds that did not run to their end."""
    many = len(metrics["seeds"]) > 1
    said = list(metrics["warnings"])
    for seed in metrics["seeds"]:
        who = f"Seed {seed['seed']}" if many else "Training"
        last = max((step["step"] for step in seed["history"]), default=0)
        if seed["stopped"] == "interrupted":
            said.append(f"{who} was interrupted after step {numbers.count(last)}, before its planned end.")
        elif seed["stopped"] == "early":
            best = seed["best_step"]
            kept = "" if best is None else f"; the weights of step {numbers.count(best)} were kept"
            said.append(f"{who} stopped early at step {numbers.count(last)}: the validation metric no longer improved{kept}.")
    return said


def _when(created: str) -> str:
    try:
        at = datetime.fromisoformat(created)
    except ValueError:
        return text(created)
    return f'<time datetime="{text(created)}">{at.day} {at:%B %Y, %H:%M}</time>'


def _about(metrics: Metrics) -> str:
    items, labels = metrics["items"], metrics["labels"]
    kinds = "tags" if metrics["task"] == "token-classification" else "classes"
    together = metrics.get("tasks", {})
    parts = [f"{len(together)} tasks learned together: {text(', '.join(together))}" if together else
             text(metrics["task"].replace("-", " ").capitalize()) + (f", {len(labels)} {kinds}" if labels else "")]
    parts.append(f"{numbers.count(items['train'])} items to train on, {numbers.count(items['validation'])} to choose by, "
                 f"{numbers.count(items['test'])} kept for the test")
    settings = ", ".join(f"{name} {_setting(value)}" for name, value in metrics["settings"].items() if value is not None)
    if settings:
        parts.append(f"Settings: <bdi>{text(settings, 300)}</bdi>")
    return ".<br>".join([". ".join(parts[:2]), *parts[2:]]) + "."


def _setting(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def result(metrics: Metrics) -> str:
    """The number with its interval, beside what it had to beat."""
    metric, seeds = metrics["metric"], metrics["seeds"]
    if not metrics["test"]:
        return _untested(metrics)
    mine = metrics["test"][metric]
    shown = numbers.value(metric, mine["value"])
    number, gap, unit = shown.partition(numbers.GAP)
    over = f"{numbers.count(metrics['items']['test'])} test items"
    if len(seeds) > 1:
        spread = "" if mine["spread"] is None else f", standard deviation {_spread(metric, mine['spread'])}"
        over = f"mean of {len(seeds)} seeds{spread}, each on {over}"
    else:
        over = f"on {over}"
    known = (f"95{numbers.GAP}% interval {numbers.interval(metric, mine['low'], mine['high'])}" if mine["low"] is not None
             else "no interval was computed")
    name = numbers.title(metric)
    big = (f'<div class="big"><b>{number}{f"<i>{gap}{unit}</i>" if unit else ""}</b>'
           f'<span><strong>{text(name[:1].upper() + name[1:])}</strong>, {over}<br>{known}</span></div>')
    return f'<div class="result">{big}{_forest(metrics, mine)}</div>'


def _spread(metric: str, spread: float) -> str:
    return f"{100 * spread:.1f} points" if numbers.is_fraction(metric) else numbers.value(metric, spread)


def _untested(metrics: Metrics) -> str:
    metric = metrics["metric"]
    best = [e["values"][metric] for s in metrics["seeds"] for e in s["evaluations"]]
    said = f" The best {text(numbers.title(metric))} on validation was {numbers.value(metric, max(best))}." if best else ""
    return f'<div class="result"><div class="big"><b>–</b><span>The test split has not been read.{said}</span></div></div>'


def _forest(metrics: Metrics, mine: Estimate) -> str:
    """Points with their intervals on one axis: the run, its seeds, the baselines."""
    metric = metrics["metric"]
    rows: list[Row] = [("mine", "this run" if len(metrics["seeds"]) == 1 else f"mean of {len(metrics['seeds'])} seeds", mine)]
    if len(metrics["seeds"]) > 1:
        rows += [("one other", f"seed {s['seed']}", s["test"][metric]) for s in metrics["seeds"] if s["test"]]
    rows += [("other", b["title"], b["test"][metric]) for b in rivals(metrics) if b["test"]]
    return forest([Line(kind, name, e["value"], e["low"], e["high"], numbers.value(metric, e["value"]),
                        numbers.interval(metric, e["low"], e["high"])) for kind, name, e in rows], numbers.is_fraction(metric))


def verdicts(metrics: Metrics) -> str:
    """For each baseline whether it was beaten."""
    if not metrics["test"]:
        return ""
    said = [verdict(metrics["metric"], baseline, metrics["items"]["test"]) for baseline in rivals(metrics)]
    points = "".join(f'<li class="{kind}">{text(words)}</li>' for kind, words in said)
    return f'<ul class="verdict">{points}</ul>' if points else ""


def _warnings(metrics: Metrics) -> str:
    said = notices(metrics)
    if not said:
        return ""
    grave = metrics["warnings"] or any(seed["stopped"] == "interrupted" for seed in metrics["seeds"])
    head = "Before you trust this" if grave else "Worth knowing"
    points = "".join(f"<li>{text(sentence)}</li>" for sentence in said)
    return f'<div class="warnings" role="note"><h2>{head}</h2><ul>{points}</ul></div>'

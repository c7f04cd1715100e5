"""Which class was taken for which, and precision, recall and F1 of every class or kind of entity."""
from __future__ import annotations

from collections.abc import Sequence

from thrifty.evaluate.entities import is_entity_scheme
from thrifty.report import charts, measure, numbers
from thrifty.report.markup import figure, legend, note, section, table, text
from thrifty.report.measure import Score
from thrifty.report.reading import Results

MOST_DRAWN = 30     # classes in a confusion matrix
MOST_LISTED = 40    # classes in the open table
ABSENT = "The folder holds no test predictions, so there are no errors to show."


def errors(results: Results) -> str:
    """The confusion matrix, or for many classes the pairs confused most, and the scores by class."""
    labels = results.metrics["labels"] or []
    every = results.predictions
    if not every:
        return section("Errors by class", "", note(ABSENT))
    counts = measure.confusion([(str(p["target"]), str(p["prediction"])) for p in every if p["prediction"] is not None], labels)
    said = f"{sum(p['target'] != p['prediction'] for p in every)} of {len(every)} predictions are wrong"
    remark = f"{said}{results.pooled}."
    if unread := sum(p["prediction"] is None for p in every):
        remark += f" In {unread} of them the model wrote nothing that names a class; these are left out below."
    if len(labels) <= MOST_DRAWN:
        remark += " Rows are what is true, columns what was predicted."
        shown = _matrix(f"{results.key}confusion", counts, labels, said)
    else:
        shown = _pairs(counts, labels)
    return section("Errors by class", remark, shown + _scores(labels, measure.label_scores(counts), "class"))


def entities(results: Results) -> str:
    """The scores by kind of entity."""
    if not results.predictions:
        return section("Entities", "", note(ABSENT))
    labels = results.metrics["labels"] or []
    scores = measure.entity_scores(((_tags(p["target"]), _tags(p["prediction"])) for p in results.predictions), labels)
    if is_entity_scheme(labels):
        remark, name, what = "An entity counts as found if its kind and both its ends are right", "Entities", "entity"
    else:
        remark, name, what = "Every token counts once", "Tags", "tag"
    return section(name, f"{remark}{results.pooled}.", _scores(list(scores), list(scores.values()), what))


def _matrix(key: str, counts: Sequence[Sequence[int]], labels: Sequence[str], said: str) -> str:
    chart = charts.confusion(key, counts, labels, "Confusion matrix", said)
    # On a phone a matrix of many classes keeps its letters readable and scrolls instead.
    widest = min(760, max(300, charts.confusion_cell(len(labels)) * len(labels) + 190))
    narrowest = min(widest, 26 * len(labels) + 60)
    frame = f'<div class="grid-chart"><div style="min-width:{narrowest}px;max-width:{widest}px">{chart}</div></div>'
    return figure(frame, legend([("box good", "right"), ("box bad", "wrong; stronger where a larger share of the row")]))


def _pairs(counts: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    rows = [[text(labels[i]), text(labels[j]), numbers.count(n), numbers.percent(n / sum(counts[i]))]
            for i, j, n in measure.mixed_up(counts)]
    head = ["true", "predicted as", "items", "of the true"]
    return f'<div><h3>The pairs confused most</h3>{table(head, rows, "words")}</div>'


def _scores(labels: Sequence[str], scores: Sequence[Score], what: str) -> str:
    order = sorted(range(len(labels)), key=lambda i: (scores[i].f1 is None, scores[i].f1 or 0.0))
    rows = [[text(labels[i]), numbers.count(scores[i].items), _share(scores[i].precision), _share(scores[i].recall),
             _meter(scores[i].f1) + _share(scores[i].f1)] for i in order]
    head = [what, "items", "precision", "recall", "F1"]
    shown = f"<div><h3>By {what}, weakest first</h3>{table(head, rows[:MOST_LISTED])}</div>"
    rest = rows[MOST_LISTED:]
    if rest:
        shown += f"<details><summary>The other {len(rest)}</summary><div>{table(head, rest)}</div></details>"
    return shown


def _tags(value: object) -> list[str]:
    return [str(tag) for tag in value] if isinstance(value, list) else []


def _share(value: float | None) -> str:
    return "–" if value is None else numbers.percent(value)


def _meter(value: float | None) -> str:
    return f'<span class="meter" aria-hidden="true"><i style="width:{100 * (value or 0):.0f}%"></i></span>'

"""The whole page: one file that shows everything and loads nothing."""
from __future__ import annotations

from collections.abc import Callable

from thrifty.report.agreement import agreement, far
from thrifty.report.calibration import calibration
from thrifty.report.cost import cost
from thrifty.report.document import document
from thrifty.report.errors import entities, errors
from thrifty.report.examples import mistagged, written, wrong
from thrifty.report.headline import brief, headline
from thrifty.report.learning import learning
from thrifty.report.markup import note, record, section, text
from thrifty.report.reading import Results
from thrifty.report.tasks import by_task, outcome
from thrifty.report.values import values

Part = Callable[[Results], str]
CLASSIFIED: list[Part] = [errors, calibration, wrong]
PARTS: dict[str, list[Part]] = {
    "text-classification": CLASSIFIED,
    "image-classification": CLASSIFIED,
    "contrastive": [],
    "multiple-choice": [calibration, wrong],
    "token-classification": [entities, mistagged],
    "regression": [agreement, far],
    "causal-generation": [written],
    "seq2seq-generation": [written],
    "masked-language": [written],
    "navigation": [written],
}


def compose(results: Results) -> str:
    """The report as HTML."""
    m = results.metrics
    body = [headline(m), learning(results), values(results)]
    body += [part(own) for own in by_task(results) for part in [outcome, *PARTS[own.metrics["task"]]]] if "tasks" in m else \
        [part(results) for part in PARTS[m["task"]]]
    body += [cost(results), repeat(results)]
    return document(f"{brief(m['model'])} adapted to {brief(m['data'])} with {m['method']}", body)


def repeat(results: Results) -> str:
    """What is needed to get the same numbers again."""
    m = results.metrics
    command = f"<pre>{text(m['command'])}</pre>" if m["command"] else ""
    files = [("Configuration", "config.json", results.config), ("Data", "data.json", results.data),
             ("Environment", "environment.json", results.environment)]
    kept = "".join(f"<details><summary>{name}<span>{file}</span></summary><div>{record(held)}</div></details>"
                   for name, file, held in files if held is not None)
    lost = [file for _, file, held in files if held is None]
    missing = note(f"Not in the folder: {', '.join(lost)}.") if lost else ""
    seeds = ", ".join(str(s["seed"]) for s in m["seeds"])
    whole = f"Model <bdi>{text(m['model'])}</bdi><br>Data <bdi>{text(m['data'])}</bdi><br>Seeds {seeds}"
    return section("To repeat it", whole, f"{command}<div>{kept}</div>{missing}")

"""The whole page: one file that shows everything and loads nothing."""
from __future__ import annotations

from collections.abc import Callable

from thrifty.report import examples, sections
from thrifty.report.headline import brief, headline
from thrifty.report.markup import record, section, text
from thrifty.report.reading import Results
from thrifty.report.style import STYLE

Part = Callable[[Results], str]
CLASSIFIED: list[Part] = [sections.errors, sections.calibration, examples.wrong]
PARTS: dict[str, list[Part]] = {
    "text-classification": CLASSIFIED,
    "image-classification": CLASSIFIED,
    "multiple-choice": [sections.calibration, examples.wrong],
    "token-classification": [sections.entities, examples.mistagged],
    "regression": [sections.agreement, examples.far],
    "causal-generation": [examples.written],
    "seq2seq-generation": [examples.written],
}
# Even if something slipped through the escaping, a browser would neither run nor fetch it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def compose(results: Results) -> str:
    """The report as HTML."""
    m = results.metrics
    specific = [part(results) for part in PARTS[m["task"]]]
    body = [headline(m), sections.learning(results), sections.all_metrics(results), *specific, sections.cost(results), repeat(results)]
    title = f"{brief(m['model'])} adapted to {brief(m['data'])} with {m['method']}"
    return ('<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
            + "\n".join(part for part in body if part)
            + "\n<footer>Written by thrifty. This file is complete in itself and loads nothing from a network.</footer>\n</main>\n</body>\n</html>\n")


def repeat(results: Results) -> str:
    """What is needed to get the same numbers again."""
    m = results.metrics
    command = f"<pre>{text(m['command'])}</pre>" if m["command"] else ""
    files = [("Configuration", "config.json", results.config), ("Data", "data.json", results.data),
             ("Environment", "environment.json", results.environment)]
    kept = "".join(f"<details><summary>{name}<span>{file}</span></summary><div>{record(held)}</div></details>"
                   for name, file, held in files if held is not None)
    lost = [file for _, file, held in files if held is None]
    note = f'<p class="note">Not in the folder: {", ".join(lost)}.</p>' if lost else ""
    whole = f"Model <bdi>{text(m['model'])}</bdi><br>Data <bdi>{text(m['data'])}</bdi><br>Seeds {', '.join(str(s['seed']) for s in m['seeds'])}"
    return section("To repeat it", whole, f"{command}<div>{kept}</div>{note}")

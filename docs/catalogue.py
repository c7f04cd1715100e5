"""Writes the README's table of methods from the catalogue, so that the two cannot disagree: ``python docs/catalogue.py``."""
from __future__ import annotations

import re
from pathlib import Path

from thrifty.methods import CATALOGUE

README = Path(__file__).resolve().parent.parent / "README.md"
MARKS = re.compile(r"(<!-- methods: [^\n]*-->\n).*?(<!-- /methods -->)", re.DOTALL)


def table() -> str:
    """One row a method: name, route, what trains, whether it merges, and the paper."""
    lines = ["| method | route | trains | at inference | paper |", "|---|---|---|---|---|"]
    for method in CATALOGUE.values():
        others = [*method.aliases, *method.presets]
        also = f" ({', '.join(others)})" if others else ""
        lines.append(f"| `{method.name}`{also} | {method.route} | {method.trains} | {method.inference} | {method.paper} |")
    return "\n".join(lines) + "\n"


def written(text: str) -> str:
    """The README with the table in its place."""
    return MARKS.sub(lambda m: m[1] + table() + m[2], text)


if __name__ == "__main__":
    README.write_text(written(README.read_text()))

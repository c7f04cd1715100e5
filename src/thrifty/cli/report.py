"""`thrifty report`: the page of a run, once more."""
from __future__ import annotations

import argparse

from thrifty.cli.parsing import Parser
from thrifty.report import write

EXAMPLES = ("thrifty report runs/first",)


def parser() -> Parser:
    """Its options."""
    made = Parser("report", "Write report.html into the folder of a finished run, from the files that lie there.", EXAMPLES)
    made.add_argument("run", help="folder of a run")
    return made


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Write the page and say where it is."""
    print(write(args.run))

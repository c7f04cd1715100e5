"""`thrifty methods`: the catalogue."""
from __future__ import annotations

import argparse
import json
from typing import Any

from thrifty.cli.parsing import Parser

EXAMPLES = ("thrifty methods", "thrifty methods lora", "thrifty methods --json")


def parser() -> Parser:
    """Its options."""
    made = Parser("methods", "Every method: how it adapts a model, what it trains, whether it merges, its paper.", EXAMPLES)
    made.add_argument("name", nargs="?", help="show one method with its settings")
    made.add_argument("--json", action="store_true", help="a list of objects, for programs")
    return made


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Print the catalogue.

    Raises:
        NoSuchSetting: no method of that name.
    """
    from thrifty.methods import CATALOGUE, find

    chosen = [find(args.name)] if args.name else list(CATALOGUE.values())
    entries = [describe(method) for method in chosen]
    if args.json:
        print(json.dumps(entries, indent=1, ensure_ascii=False))
    elif args.name:
        print(one(entries[0]))
    else:
        print(table(entries))


def describe(method: Any) -> dict[str, Any]:
    """One method as plain data; ``settings`` are its fields with their default values."""
    return {
        "name": method.name, "aliases": [*method.aliases, *method.presets], "route": method.route,
        "modalities": list(method.modalities), "paper": method.paper, "mergeable": method.mergeable, "trains": method.trains,
        "inference": method.inference, "settings": method().settings()}


def table(entries: list[dict[str, Any]]) -> str:
    """One line per method."""
    heads = ("name", "route", "merges", "trains")
    rows = [(e["name"], e["route"], "yes" if e["mergeable"] else "no", e["trains"]) for e in entries]
    wide = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip() for row in (heads, *rows)]
    return "\n".join([*lines, "", "thrifty methods NAME shows a method's paper and settings.",
                      "In-context learning trains nothing and is a command of its own: thrifty in-context."])


def one(entry: dict[str, Any]) -> str:
    """Everything about one method."""
    also = f" (also {', '.join(entry['aliases'])})" if entry["aliases"] else ""
    lines = [f"{entry['name']}{also}", f"  {entry['paper']}", f"  route      {entry['route']}",
             f"  trains     {entry['trains']}", f"  merges     {'yes' if entry['mergeable'] else 'no'}",
             f"  inference  {entry['inference'] or 'as trained'}",
             f"  for        {', '.join(entry['modalities'])}", "  settings"]
    return "\n".join(lines + [f"    {name} = {value!r}" for name, value in entry["settings"].items()] or ["    none"])

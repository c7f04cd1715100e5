"""A ranking in words: what the command prints, and the sentences that the page shares with it."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.report import numbers

Plain = Mapping[str, Any]


def rule(ranking: Plain) -> str:
    """How the order came about, in a sentence."""
    voices = [name for name, score in ranking["scores"].items() if score["counts"]]
    return (f"The order is by the mean rank over {len(voices)} scores ({', '.join(voices) or 'none'}): each has one voice. "
            "Models whose intervals of the mean rank overlap cannot be told apart.")


def verdicts(ranking: Plain) -> list[tuple[str, str]]:
    """What can be said of the order: "better" or "equal", and the sentence."""
    models = ranking["models"]
    if len(models) < 2:
        return [("equal", "There is only one model, so there is nothing to choose.")]
    first = models[0]
    if not first["like"]:
        return [("better", f"{first['name']} comes first, and can be told apart from all others on these rows.")]
    if len(first["like"]) == len(models) - 1:
        return [("equal", f"{first['name']} has the best mean rank, but cannot be told apart from any other on these rows.")]
    return [("equal", f"{first['name']} has the best mean rank, but cannot be told apart from {', '.join(first['like'])}.")]


def warnings(ranking: Plain) -> list[str]:
    """What to know before trusting it."""
    said = [f"{name} was left out: {why}" for name, why in ranking["failed"].items()]
    if ranking["record"] == "not measured":
        said.append("How well these scores foretell accuracies was not measured in this copy of thrifty.")
    weak = [name for name, score in ranking["scores"].items() if score["beats_size"] is False]
    if weak:
        said.append(f"No better than ranking by size alone, where that was measured: {', '.join(weak)}.")
    partial = [name for name, score in ranking["scores"].items() if not score["counts"]]
    if partial:
        said.append(f"Without a value for every model, and so without a voice: {', '.join(partial)}.")
    said += [f"{name} was not asked: {why}." for name, why in ranking["left_out"].items()]
    return said


def table(ranking: Plain) -> str:
    """The whole ranking as text."""
    heads = ("place", "model", "mean rank", "interval", "like", "parameters", "D", "features")
    rows = [(str(m["place"]), m["name"], f"{m['mean_rank']:.2f}", between(m["low"], m["high"]), str(len(m["like"])) or "",
             "–" if m["parameters"] is None else numbers.short(m["parameters"]), str(m["dimension"]),
             numbers.seconds(m["seconds"]["features"])) for m in ranking["models"]]
    names = [m["name"] for m in ranking["models"]]
    below = [(mark(name, score), *(shown(score["values"][model]) for model in names), score["foretold"])
             for name, score in ranking["scores"].items()]
    parts = [align(heads, rows), "", align(("score", *names, "foretold"), below), "", *(words for _, words in verdicts(ranking)),
             rule(ranking), *warnings(ranking)]
    return "\n".join(parts)


def mark(name: str, score: Plain) -> str:
    """A score's name, marked where it does not beat size."""
    return f"{name} *" if score["beats_size"] is False else name


def between(low: float | None, high: float | None) -> str:
    """Both ends of an interval of ranks."""
    return "–" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def shown(value: Plain) -> str:
    """A value with half of the width of its interval, and the rank it gives."""
    if value["value"] is None:
        return "–"
    half = "" if value["low"] is None else f" ± {(value['high'] - value['low']) / 2:.2g}"
    return f"{value['value']:.4g}{half} ({value['rank']:g})"


def align(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under each other."""
    wide = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip() for row in (heads, *rows))

"""A ranking in words: what the command prints, and the sentences that the page shares with it."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.report import numbers
from thrifty.report.headline import brief

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
    first, called = models[0], call(ranking)
    name = called[first["name"]]
    if not first["like"]:
        return [("better", f"{name} comes first, and can be told apart from all others on these rows.")]
    others = "any other" if len(first["like"]) == len(models) - 1 else ", ".join(called[other] for other in first["like"])
    return [("equal", f"{name} has the best mean rank, but cannot be told apart from {others} on these rows.")]


def call(ranking: Plain) -> dict[str, str]:
    """What the models are called in tables: the last part of a path, unless two end alike."""
    names = [m["name"] for m in ranking["models"]]
    short = [brief(name) for name in names]
    return {name: one if short.count(one) == 1 else name for name, one in zip(names, short, strict=True)}


def warnings(ranking: Plain) -> list[str]:
    """What to know before trusting it."""
    said = [f"{name} was left out: {why}" for name, why in ranking["failed"].items()]
    if ranking["record"] == "not measured":
        said.append("How well these scores foretell accuracies was not measured in this copy of thrifty.")
    if even := [name for name, score in ranking["scores"].items() if score["counts"] and is_even(score)]:
        said.append(f"The same for all models, up to rounding, and so without a say: {', '.join(even)}.")
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
    called, places = call(ranking), {m["name"]: str(m["place"]) for m in ranking["models"]}
    heads = ("place", "model", "mean rank", "interval", "not told apart from", "parameters", "D", "features")
    rows = [(str(m["place"]), called[m["name"]], f"{m['mean_rank']:.2f}", between(m["low"], m["high"]),
             ", ".join(places[name] for name in m["like"]) or "–",
             "–" if m["parameters"] is None else numbers.short(m["parameters"]), str(m["dimension"]),
             numbers.seconds(m["seconds"]["features"])) for m in ranking["models"]]
    names = [m["name"] for m in ranking["models"]]
    below = [(mark(name, score), *(shown(score["values"][model]) for model in names), score["foretold"])
             for name, score in ranking["scores"].items()]
    said = [words for _, words in verdicts(ranking)]
    return "\n".join([align(heads, rows), "", align(("score", *called.values(), "foretold"), below), "", *said, rule(ranking),
                      *warnings(ranking)])


def is_even(score: Plain) -> bool:
    """Whether a score ranks nobody before anybody."""
    return len({value["rank"] for value in score["values"].values()}) == 1 < len(score["values"])


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
    return f"{value['value']:.4g}{half} ({value['rank']:g})".replace("-", "−")


def align(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under each other."""
    wide = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip() for row in (heads, *rows))

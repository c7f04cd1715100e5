"""A ranking as one HTML page: the order, every score, what it took, what to be wary of."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thrifty.candidates.words import between, call, rule, shown, verdicts, warnings
from thrifty.report import numbers
from thrifty.report.document import document
from thrifty.report.forest import Line, forest
from thrifty.report.markup import note, record, section, table, text

Plain = Mapping[str, Any]


def compose(ranking: Plain) -> str:
    """The page, from what `Ranking.plain` says."""
    return document(f"{len(ranking['models'])} models ranked on {ranking['data']['name']}",
                    [_headline(ranking), _scores(ranking), _cost(ranking), _failed(ranking), _repeat(ranking)])


def _headline(ranking: Plain) -> str:
    data = ranking["data"]
    kinds = "numbers" if data["labels"] is None else f"{len(data['labels'])} classes"
    said = "".join(f'<li class="{kind}">{text(words)}</li>' for kind, words in verdicts(ranking))
    wary = "".join(f"<li>{text(words)}</li>" for words in warnings(ranking))
    head = "Before you trust this" if ranking["failed"] else "Worth knowing"
    return (f'<h1>{len(ranking["models"])} models <small>for</small> {text(data["name"])}</h1>'
            f'<p class="about">{numbers.count(data["rows"])} of {numbers.count(data["of"])} training rows with {kinds}; validation '
            f"and test rows were not looked at, and nothing was tuned.<br>{text(rule(ranking))}</p>"
            f'<div class="result">{_best(ranking)}{_forest(ranking)}</div>'
            f'<ul class="verdict">{said}</ul>'
            + (f'<div class="warnings" role="note"><h2>{head}</h2><ul>{wary}</ul></div>' if wary else ""))


def _best(ranking: Plain) -> str:
    best, voices = ranking["models"][0], sum(score["counts"] for score in ranking["scores"].values())
    name = text(call(ranking)[best["name"]])
    return (f'<div class="big"><b>{best["mean_rank"]:.2f}</b><span><strong>{name}</strong>, mean rank over {voices} scores<br>'
            "1 is first in all of them</span></div>")


def _forest(ranking: Plain) -> str:
    best, called = ranking["models"][0], call(ranking)
    alike = {best["name"], *best["like"]}
    return forest([Line("mine" if m["name"] in alike else "other", called[m["name"]], m["mean_rank"], m["low"], m["high"],
                        f"{m['mean_rank']:.2f}", between(m["low"], m["high"])) for m in ranking["models"]])


def _scores(ranking: Plain) -> str:
    called, names = call(ranking), [m["name"] for m in ranking["models"]]
    rows = [[_name(name, score), *(_cell(score["values"][model]) for model in names), text(score["foretold"])]
            for name, score in ranking["scores"].items()]
    why: dict[str, list[str]] = {}
    for name, score in ranking["scores"].items():
        for model, value in score["values"].items():
            if value["why"]:
                why.setdefault(value["why"], []).append(f"{name} of {called[model]}")
    body = table(["", *map(text, called.values()), "foretold"], rows)
    starred = note("* No better than ranking by size alone, where that was measured.") if any(
        score["beats_size"] is False for score in ranking["scores"].values()) else ""
    without = "".join(note(f"No number, or no interval, for {text(', '.join(which))}: {text(words)}")
                      for words, which in why.items())
    remark = ("Higher is better, always. Behind each value half of its 95 % interval, which comes from halves of the rows, and the "
              "rank it gives. The last column says what the score foretold elsewhere.")
    return section("Every score", remark, f"{body}{starred}{without}")


def _name(name: str, score: Plain) -> str:
    mark = " *" if score["beats_size"] is False else ""
    return f"{text(name)}{mark}" + ("" if score["counts"] else " <small>no voice</small>")


def _cell(value: Plain) -> str:
    best = value["rank"] == 1
    return f"<b>{shown(value)}</b>" if best else shown(value)


def _found(model: Plain) -> str:
    return " <small>found</small>" if model["reused"] else ""


def _cost(ranking: Plain) -> str:
    planned = any("cost" in m for m in ranking["models"])
    head = ["", "parameters", "features", "weights", "memory at most", "to load", "to see all rows",
            *(["to tune", "memory to tune"] if planned else [])]
    called = call(ranking)
    rows = [[text(called[m["name"]]), "–" if m["parameters"] is None else numbers.short(m["parameters"]),
             numbers.count(m["dimension"]), _size(m["bytes"]), _size(m["peak"]["peak_bytes"]),
             numbers.seconds(m["seconds"]["load"]), numbers.seconds(m["seconds"]["features"]) + _found(m), *_plan(m, planned)]
            for m in ranking["models"]]
    remark = ("Memory is the most that the process had held by then, this model and those before it. Features are kept: the next "
              "ranking of the same rows finds them.")
    return section("What it took", remark, table(head, rows))


def _plan(model: Plain, planned: bool) -> list[str]:
    if not planned:
        return []
    cost = model.get("cost") or {"seconds": None, "peak": None}
    return ["–" if cost["seconds"] is None else numbers.seconds(cost["seconds"]), _size(cost["peak"])]


def _size(count: int | None) -> str:
    return "–" if count is None else numbers.size(count)


def _failed(ranking: Plain) -> str:
    if not ranking["failed"]:
        return ""
    body = "".join(f"<h3>{text(name)}</h3><pre>{text(why)}</pre>" for name, why in ranking["failed"].items())
    return section("Left out", "These could not be loaded or seen.", f"<div>{body}</div>")


def _repeat(ranking: Plain) -> str:
    held = {"data": ranking["data"], "settings": ranking["settings"], "scores measured elsewhere": ranking["record"],
            "models": [{key: m[key] for key in ("name", "class", "reads", "source_classes", "truncated", "notes")}
                       for m in ranking["models"]]}
    body = f"<details><summary>How it was done<span>ranking.json</span></summary><div>{record(held)}</div></details>"
    return section("To repeat it", "", body)

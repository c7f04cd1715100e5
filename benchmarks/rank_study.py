"""Do transferability scores foretell? Every score beside the accuracy that a linear probe and LoRA reach, over a zoo, on six sets.

    python benchmarks/rank_study.py run [--only trec,trec/minilm] [--methods lora] [--seeds 3]
    python benchmarks/rank_study.py table      # docs/rank.md; when all is measured also what `thrifty rank` quotes

A seed decides which rows are drawn, the head's start and the order of the data; scores see the rows that the tunings train on.
"""
from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from foretelling import foretell, mean_by_model, summarise
from study import ASSETS, HERE, Case, Row, Study, describe, spread
from zoo import PICTURES, TEXTS, Backbone

WAYS = ("linear-probe", "lora")
RATES = {"linear-probe": 1e-2, "lora": 2e-3}
LOOKING = {"linear-probe": {"rate": 1e-2}, "lora": {"rate": 1e-3, "head_rate": 1e-2}}  # convolutions, as in foundation.py
BASELINES = ("parameters", "dimension")
MEASURED = HERE.parent / "src" / "thrifty" / "candidates" / "measured.json"


@dataclass(frozen=True)
class Set:
    """A data set with the backbones that read it; ``shots`` rows of each class, or ``limit`` rows, train; ``source`` for OTCE."""

    data: str
    zoo: tuple[Backbone, ...]
    note: str
    draw: dict[str, int]
    epochs: float
    source: str | None = None


SEEN = "image/tinyimagenet100"  # much like what backbones of pictures were trained on: small ones of a hundred of its classes
SEEN_SHOTS = 10                 # of each: with one row per class, a source class would tell everything, and OTCE be 0
SETS = {
    "trec": Set("text/trec", TEXTS, "480 of 5 452 rows, 6 classes", {"limit": 480}, 4),
    "ag-news": Set("text/ag_news_test", TEXTS, "480 of 5 600 rows, 4 classes", {"limit": 480}, 3),
    "sst5": Set("text/sst5", TEXTS, "480 of 8 544 rows, 5 classes", {"limit": 480}, 3),
    "dtd10": Set("image/dtd10", PICTURES, "400 of 600 pictures, 10 classes", {"limit": 400}, 4, SEEN),
    "rsscn7": Set("image/rsscn7", PICTURES, "400 of 805 pictures, 7 classes", {"limit": 400}, 4, SEEN),
    "caltech101": Set("image/caltech101", PICTURES, "4 of 16 pictures of each of 100 classes", {"shots": 4}, 6, SEEN),
}
TESTED = 360  # test rows, a seeded sample that is the same for all


def cases() -> dict[str, Case]:
    """By set the scores of its whole zoo, and by set and backbone the two tunings, of those backbones that are here."""
    found = {}
    for name, one in SETS.items():
        zoo = [backbone for backbone in one.zoo if backbone.exists()]
        settings = {**one.draw, "epochs": one.epochs, "batch": 16, "allow_leak": True, "baselines": False}
        found[name] = Case(one.data, "zoo", "ranked", one.note, settings, ("scores",))
        found |= {f"{name}/{backbone.name}": Case(one.data, backbone.name, "accuracy", one.note, settings, WAYS, test_rows=TESTED)
                  for backbone in zoo}
    return found


def measure(name: str, label: str, seed: int) -> Row:
    """One cell: all scores of a set, or one tuning."""
    return measure_scores(name, seed) if label == "scores" else measure_tuning(name, label, seed)


def measure_scores(name: str, seed: int) -> Row:
    """All scores of the set's zoo on the rows that the tunings with this seed train on."""
    from thrifty import rank
    from thrifty.data import read

    one, began = SETS[name], time.monotonic()
    data = read(ASSETS / one.data, seed=seed, allow_leak=True, **one.draw)
    zoo = {backbone.name: backbone.place() for backbone in one.zoo if backbone.exists()}
    found = rank.models(zoo, data, rows=None, draws=0, seed=seed, source=source_rows(one.source), progress=False)
    values = {score: {model: value.value for model, value in values.items()} for score, values in found.scores.items()}
    sizes = {key: {model: found.seen[model][key] for model in found.seen} for key in BASELINES}
    return {"set": name, "method": "scores", "seed": seed, "metric": "ranked", "test": {"ranked": len(found.seen)},
            "scores": values, "failed": found.failed, **sizes, "timing": {"train_seconds": time.monotonic() - began}}


def source_rows(folder: str | None) -> Any:
    """A few labelled rows of what models were trained on."""
    from thrifty.data import read

    return None if folder is None else read(ASSETS / folder, shots=SEEN_SHOTS, allow_leak=True)


def measure_tuning(name: str, label: str, seed: int) -> Row:
    """Train one backbone in one way, and test it once."""
    import thrifty
    from thrifty.methods import find

    case, (group, _, model) = CASES[name], name.partition("/")
    backbone = next(one for one in SETS[group].zoo if one.name == model)
    rates = LOOKING[label] if backbone.where != Backbone.where else {"rate": RATES[label]}
    method = find("lora").make(where=backbone.where) if label == "lora" else label
    with tempfile.TemporaryDirectory() as out:
        done = thrifty.tune(backbone.place(), case.source, method, out, progress=False, overwrite=True, settings={
            **case.settings, **rates, "seed": seed, "split_seed": seed, "cache": "auto" if label == "linear-probe" else "off"})
    return describe(name, label, seed, case, done)


Results = dict[str, dict[str, dict[str, dict[str, float] | None]]]


class RankStudy(Study):
    """Its page says how well each score foretold, instead of how well each method did."""

    def table(self) -> str:
        """The page."""
        rows = self.stored()
        text = [self.introduction, f"**{self.progress(rows)}**\n" if not self.complete(rows) else ""]
        found = correlate(rows)
        return "\n".join([*text, summary_table(found), *(set_table(name, rows) for name in SETS)])

    def wanted(self) -> int:
        """How many cells there are."""
        return sum(3 * len(case.methods) for case in self.cases.values())

    def complete(self, rows: list[Row]) -> bool:
        """Whether all of them are measured."""
        return len(rows) >= self.wanted()

    def progress(self, rows: list[Row]) -> str:
        """How far it got."""
        return f"Not finished: {len(rows)} of {self.wanted()} cells are measured."

    def publish(self) -> None:
        """What `thrifty rank` quotes, once all is measured."""
        rows = self.stored()
        if not self.complete(rows):
            return
        means = summarise(correlate(rows))
        zoo = len({model for row in rows if row["method"] == "scores" for model in row["parameters"]})
        held = {"about": f"{zoo} backbones, {len(SETS)} sets, three seeds: benchmarks/rank_study.py, docs/rank.md",
                "scores": {name: one for name, one in means.items() if name not in BASELINES},
                "baselines": {name: means[name] for name in BASELINES}}
        MEASURED.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")


def correlate(rows: list[Row]) -> Results:
    """score (or "parameters", "dimension") -> way -> set -> how well it foretold."""
    found: Results = {}
    for name in SETS:
        asked = [row for row in rows if row["set"] == name]
        for way in WAYS:
            reached = accuracies(rows, name, way)
            for score, values in by_score(asked).items():
                found.setdefault(score, {}).setdefault(way, {})[name] = foretell(mean_by_model(values), reached)
    return found


def by_score(asked: list[Row]) -> dict[str, list[Mapping[str, float | None]]]:
    """score, or baseline -> what it said of every model, seed by seed."""
    names = list(dict.fromkeys(score for row in asked for score in row["scores"]))
    return {**{name: [row["scores"][name] for row in asked if name in row["scores"]] for name in names},
            **({key: [row[key] for row in asked] for key in BASELINES} if asked else {})}


def accuracies(rows: list[Row], name: str, way: str) -> dict[str, float]:
    """Model -> mean accuracy over the seeds."""
    found: dict[str, list[float]] = {}
    for row in rows:
        group, _, model = row["set"].partition("/")
        if group == name and row["method"] == way:
            found.setdefault(model, []).append(row["test"]["accuracy"])
    return {model: sum(values) / len(values) for model, values in found.items()}


def summary_table(found: Results) -> str:
    """Means over the sets."""
    means = summarise(found)
    lines = ["## Does it foretell?", "",
             "Means over the sets of Kendall's weighted tau and Pearson's correlation with the accuracy that was reached; rows in "
             "italics rank by size alone.", "",
             "| score |" + "".join(f" {way}: tau | Pearson | sets |" for way in WAYS), "|---" * (1 + 3 * len(WAYS)) + "|"]
    best = order_by(means, lambda ways: sum(one["tau"] for one in ways.values()) / len(ways))
    for score in best:
        cells = [means[score].get(way) for way in WAYS]
        shown = "".join(" – | – | 0 |" if one is None else f" {one['tau']:.3f} | {one['pearson']:.3f} | {one['sets']} |"
                        for one in cells)
        lines.append(f"| {'*' + score + '*' if score in BASELINES else score} |{shown}")
    return "\n".join([*lines, ""])


def order_by(means: Mapping[str, Any], value: Callable[[Any], float]) -> list[str]:
    """Names, the one of the highest value first."""
    return sorted(means, key=lambda name: -value(means[name]))


def set_table(name: str, rows: list[Row]) -> str:
    """Accuracies that were reached on one set."""
    one = SETS[name]
    lines = [f"## {name}", "", f"{one.note}; {one.epochs:g} epochs. Accuracy on {TESTED} test rows, mean ± standard deviation.", "",
             "| backbone | " + " | ".join(WAYS) + " |", "|---" * (1 + len(WAYS)) + "|"]
    for backbone in one.zoo:
        mine = [[row["test"]["accuracy"] for row in rows if row["set"] == f"{name}/{backbone.name}" and row["method"] == way]
                for way in WAYS]
        if any(mine):
            lines.append(f"| {backbone.name} | " + " | ".join(spread(values) if values else "–" for values in mine) + " |")
    return "\n".join([*lines, ""])


INTRODUCTION = """# Do transferability scores foretell?

Made by `benchmarks/rank_study.py` from `benchmarks/results/rank_study.jsonl`. Backbones with real weights, and copies of some of
them that were cut after as many blocks as their name's last number says (`benchmarks/zoo.py`): a cut copy is made by a recipe and
is no model that somebody published, so a zoo with its own relatives in it is easier to rank than one of strangers. Every number is
over three seeds, which draw other training rows, heads and orders; scores see the rows that the tunings train on. Correlations are
over the models of one zoo (texts or pictures), set by set; scores that ask a checkpoint's classifier exist for few models, and
have no number where they are fewer than four. All tunings of a kind have one learning rate, chosen before.
"""

CASES = cases()
STUDY = RankStudy(__file__, "rank.md", INTRODUCTION, CASES, measure)

if __name__ == "__main__":
    STUDY.main(__doc__)
    if sys.argv[1] != "one":
        STUDY.publish()

"""Record: how well each score has foretold accuracies, where that was measured (benchmarks/rank_study.py, docs/rank.md)."""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from statistics import fmean
from typing import Any

FILE = "measured.json"
NONE = "not measured"


@dataclass(frozen=True)
class Record:
    """``scores`` and ``baselines`` ("parameters", "dimension": rank by size alone): name -> way of tuning -> {"tau", "pearson",
    "sets"}, means over data sets of Kendall's weighted tau and Pearson's correlation with the accuracy that was reached."""

    about: str
    scores: Mapping[str, Mapping[str, Mapping[str, float]]]
    baselines: Mapping[str, Mapping[str, Mapping[str, float]]]

    def say(self, score: str) -> str:
        """What was measured of a score, in a few words."""
        if score not in self.scores:
            return NONE
        return ", ".join(f"tau {found['tau']:.2f} with {way} ({found['sets']:.0f} sets)"
                         for way, found in self.scores[score].items())

    def beats_size(self, score: str) -> bool | None:
        """Whether a score foretold more than the number of parameters and that of features did; None where nobody measured it."""
        if score not in self.scores or not self.baselines:
            return None
        ways = self.scores[score]
        rivals = [fmean(found[way]["tau"] for way in ways) for found in self.baselines.values() if ways.keys() <= found.keys()]
        return fmean(found["tau"] for found in ways.values()) > max(rivals) if rivals else None


def read() -> Record | None:
    """What was measured; None while nothing was."""
    file = resources.files("thrifty.candidates").joinpath(FILE)
    if not file.is_file():
        return None
    held: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return Record(held["about"], held["scores"], held["baselines"])

"""How well scores foretell accuracies: Kendall's weighted tau and Pearson's correlation over a zoo, set by set, and their means.

S. Vigna, "A weighted correlation index for rankings with ties", WWW 2015; the ranking of models by it is that of SFDA, NCTI, ETran
and PED.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

Numbers = Mapping[str, float | None]  # model -> number
FEWEST = 4                            # models without which a correlation says nothing


def mean_by_model(rows: Sequence[Numbers]) -> dict[str, float]:
    """The mean over seeds of what every model has in all of them."""
    known: dict[str, list[float]] = {}
    for row in rows:
        for model, value in row.items():
            if value is not None:
                known.setdefault(model, []).append(value)
    return {model: fmean(values) for model, values in known.items() if len(values) == len(rows)}


def foretell(score: Mapping[str, float], reached: Mapping[str, float]) -> dict[str, float] | None:
    """{"tau", "pearson", "models"} of a score and the accuracy reached; None for fewer than four models. Constant scores have 0."""
    from scipy.stats import weightedtau

    both = [model for model in reached if model in score]
    if len(both) < FEWEST:
        return None
    x, y = (np.array([side[model] for model in both]) for side in (score, reached))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return {"tau": 0.0, "pearson": 0.0, "models": len(both)}
    return {"tau": float(weightedtau(x, y).statistic), "pearson": float(np.corrcoef(x, y)[0, 1]), "models": len(both)}


def summarise(found: Mapping[str, Mapping[str, Mapping[str, dict[str, float] | None]]]) -> dict[str, dict[str, dict[str, float]]]:
    """score -> way -> set -> result as score -> way -> {"tau", "pearson", "sets"}, means over the sets that have one."""
    means: dict[str, dict[str, Any]] = {}
    for score, ways in found.items():
        for way, sets in ways.items():
            if known := [one for one in sets.values() if one is not None]:
                means.setdefault(score, {})[way] = {"tau": fmean(one["tau"] for one in known),
                                                    "pearson": fmean(one["pearson"] for one in known), "sets": len(known)}
    return means

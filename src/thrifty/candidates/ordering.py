"""Ordering: one order out of many scores.

The rule: a score counts if it has a value for every candidate. Each that counts ranks them, 1 is best, and those of equal value
share the mean of their ranks; a candidate's place is the mean of its ranks (J.-C. de Borda's count, 1781). So every score has one
voice, however far apart it puts two candidates, and although some look at much the same. The mean rank is also taken in every
draw of rows, where all scores rank all candidates anew: its interval holds the middle 95 % of the draws, and the mean rank itself
(ranks end at 1, so nothing symmetrical would do). Two candidates whose intervals overlap cannot be told apart.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from thrifty.candidates.scoring import LEVEL, Value
from thrifty.evaluate.intervals import percentiles
from thrifty.rank.reading import Array

ROUNDING = 1e-9  # of the largest value


@dataclass(frozen=True)
class Standing:
    """Of one candidate: its ``place`` (shared by those of equal mean rank), ``mean_rank`` with its interval, and whom it is
    ``like``: those whose intervals overlap its own. Without an interval none can be told apart from any."""

    name: str
    place: int
    mean_rank: float
    low: float | None
    high: float | None
    like: list[str]


def rank_down(values: Sequence[float]) -> Array:
    """Ranks of ``values`` [M], 1 for the highest; equal ones share the mean of theirs.

    Those that differ by rounding are equal: a score at the end of its range, as several are where there are more dimensions than
    rows, would rank by the last bits otherwise.
    """
    held = np.asarray(values, dtype=np.float64)
    down = np.argsort(-held, kind="stable")
    steps = -np.diff(held[down]) > ROUNDING * np.abs(held).max()
    group = np.concatenate([[0], np.cumsum(steps)])
    sizes = np.bincount(group)
    ranks = np.empty(len(held))
    ranks[down] = (np.cumsum(sizes) - (sizes - 1) / 2)[group]
    return ranks


def counted(scores: Mapping[str, Mapping[str, Value]]) -> list[str]:
    """Those of ``scores`` (score -> candidate -> value) that have a value for every candidate."""
    return [name for name, values in scores.items() if all(one.value is not None for one in values.values())]


def order(names: Sequence[str], scores: Mapping[str, Mapping[str, Value]]) -> list[Standing]:
    """The candidates called ``names``, the best first, by the rule above. Where no score counts, all share the first place."""
    voices = counted(scores)
    ranks = [rank_down([_known(scores[voice][name].value) for name in names]) for voice in voices]
    mean = np.mean(ranks, axis=0) if voices else np.full(len(names), (len(names) + 1) / 2)
    ends = _intervals(names, [scores[voice] for voice in voices], mean)
    best = np.argsort(mean, kind="stable").tolist()
    found = []
    for i in best:
        like = [names[k] for k in best if k != i and (ends is None or (ends[0][i] <= ends[1][k] and ends[0][k] <= ends[1][i]))]
        low, high = (None, None) if ends is None else (float(ends[0][i]), float(ends[1][i]))
        found.append(Standing(names[i], 1 + int((mean < mean[i]).sum()), float(mean[i]), low, high, like))
    return found


def _intervals(names: Sequence[str], voices: Sequence[Mapping[str, Value]], mean: Array) -> tuple[Array, Array] | None:
    """Lower and upper ends of the mean ranks, by the draws of those scores that have them for all; None where none has."""
    drawn = [voice for voice in voices if all(voice[name].draws for name in names)]
    if not drawn or len(names) < 2:
        return None
    count = len(drawn[0][names[0]].draws)
    ranks = np.array([[rank_down([voice[name].draws[i] for name in names]) for voice in drawn] for i in range(count)]).mean(axis=1)
    low, high = np.array([percentiles(own, LEVEL) for own in ranks.T]).T
    return np.minimum(low, mean), np.maximum(high, mean)


def _known(value: float | None) -> float:
    assert value is not None, "the scores that count have a value for every candidate"
    return value

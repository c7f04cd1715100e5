"""Scoring: every score for every candidate, and how much it would differ on other rows.

An interval is the value ± t sd, with sd the deviation over draws of half of the rows of each class, without replacement, and
Student's t for as many draws: a mean over n rows varies between such halves as it does between samples of n rows (J. Shao and
C. F. J. Wu, "A general theory for jackknife variance estimation", Annals of Statistics, 1989; as a bootstrap H. Saigo, J. Shao and
R. R. Sitter, "A repeated half-sample bootstrap", Survey Methodology, 2001). Drawing with replacement would repeat rows, which
features of many dimensions know by heart: every resample would look better than the sample. All candidates see the same draws.
"""
from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thrifty.candidates.sample import Sample
from thrifty.candidates.seeing import Seen
from thrifty.core.errors import BadData, NoSuchSetting
from thrifty.evaluate.intervals import student_quantile
from thrifty.rank import SCORES, Entry, Score, find, over_hub

LEVEL = 0.95
MATCHED = 500  # rows of each side at most, where two sets are compared: optimal transport takes their cube
SOURCE = "source_features"  # among what a score needs: it compares two sets
Places = NDArray[np.int64]
NO_HEAD = "the checkpoint holds no classifier whose answers could be read"


@dataclass(frozen=True)
class Value:
    """A score of one candidate: its ``value`` and interval, and its values in all ``draws``; or ``why`` there is none."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    draws: tuple[float, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Draw:
    """Places of rows of the sample, and of the source's rows where there are any."""

    rows: Places
    source: Places | None


@dataclass
class Question:
    """What is asked about all candidates: rows with labels, and the source's if there are any."""

    sample: Sample
    source: Sample | None
    draws: list[Draw] = field(default_factory=list)

    @property
    def whole(self) -> Draw:
        """All rows."""
        return Draw(np.arange(len(self.sample.labels)), None if self.source is None else np.arange(len(self.source.labels)))


def choose(names: Sequence[str] | None, sample: Sample, source: Sample | None) -> tuple[list[Entry], dict[str, str]]:
    """The scores to ask, and by name why others are not: all that the data has a meaning for, or those with these ``names``.

    Raises:
        NoSuchSetting: an unknown name, a name twice, or a score that was asked for by name and has no meaning here.
    """
    if names is not None and len(set(names)) < len(names):
        raise NoSuchSetting(f"the scores {', '.join(names)} name one twice")
    wanted = list(SCORES.values()) if names is None else [find(name) for name in names]
    lacking = {entry.name: why for entry in wanted if (why := _lack(entry, sample, source))}
    if names and lacking:
        name, why = next(iter(lacking.items()))
        raise NoSuchSetting(f"the score {name!r} has no value here: {why}")
    chosen = [entry for entry in wanted if entry.name not in lacking]
    if not chosen:
        raise NoSuchSetting("there is no score to ask: name one or more, such as logme")
    return chosen, lacking


def draw_halves(question: Question, count: int, seed: int) -> list[Draw]:
    """``count`` draws of half of the rows of every class; a class of one row is in each."""
    random = np.random.default_rng(seed)
    regression = question.sample.regression
    found = []
    for _ in range(count):
        rows = _halve(np.zeros(len(question.sample.labels)) if regression else question.sample.labels, random)
        found.append(Draw(rows, None if question.source is None else _halve(question.source.labels, random)))
    return found


def measure(entry: Entry, candidates: Sequence[Seen], question: Question) -> dict[str, Value]:
    """The score ``entry`` of every candidate, by name. Scores in parts are scaled over the candidates, in every draw anew."""
    whole: dict[str, Score] = {}
    halves: dict[str, list[Score]] = {}
    why: dict[str, str] = {}
    for seen in candidates:
        try:
            whole[seen.name] = call(entry, seen, question, question.whole)
            halves[seen.name] = [call(entry, seen, question, draw) for draw in question.draws]
        except BadData as error:
            why[seen.name] = f"no interval, on half of the rows: {error}" if seen.name in whole else str(error)
    if entry.hub and whole:
        whole = dict(zip(whole, over_hub(list(whole.values())), strict=True))
        scaled = [over_hub(scores) for scores in zip(*halves.values(), strict=True)]
        halves = {name: [scores[place] for scores in scaled] for place, name in enumerate(halves)}
    return {seen.name: _settle(entry, whole.get(seen.name), halves.get(seen.name, []), why.get(seen.name, ""))
            for seen in candidates}


def call(entry: Entry, seen: Seen, question: Question, draw: Draw) -> Score:
    """The score on the rows of one draw, given all it has a use for: the model's logits, the source's features.

    Raises:
        BadData: it has no value on them, or the model has not what it is about.
    """
    given = _between(seen, question, draw) if SOURCE in entry.needs else _within(seen, question, draw)
    if any(need not in given for need in entry.needs):
        raise BadData(NO_HEAD)
    taken = inspect.signature(entry.function).parameters
    return entry.function(**{name: value for name, value in given.items() if name in taken})


def _within(seen: Seen, question: Question, draw: Draw) -> dict[str, Any]:
    """By the scores' names for them: what is known of the rows."""
    found: dict[str, Any] = {"features": seen.features[draw.rows], "labels": question.sample.labels[draw.rows]}
    if question.sample.regression:
        found["regression"] = True
    if seen.probabilities is not None:
        found["source_probs"] = seen.probabilities[draw.rows]
        found["source_labels"] = found["source_probs"].argmax(axis=1)
    if seen.logits is not None:
        found["logits"] = seen.logits[draw.rows]
    if seen.general is not None:
        found["general"] = seen.general[draw.source]
    return found


def _between(seen: Seen, question: Question, draw: Draw) -> dict[str, Any]:
    """By the scores' names for them: what is known of rows of the source beside as many rows of the sample."""
    assert question.source is not None and draw.source is not None and seen.general is not None
    most = min(len(draw.rows), len(draw.source), MATCHED)
    here, there = (np.random.default_rng(0).choice(places, most, replace=False) for places in (draw.source, draw.rows))
    return {SOURCE: seen.general[here], "source_labels": question.source.labels[here],
            "target_features": seen.features[there], "target_labels": question.sample.labels[there]}


def _settle(entry: Entry, score: Score | None, draws: Sequence[Score], why: str) -> Value:
    if score is None:
        return Value(why=why)
    value = float(score)
    if len(draws) < 2:
        return Value(value, why=why)
    half = student_quantile((1 + LEVEL) / 2, len(draws) - 1) * float(np.std(draws, ddof=1))
    low, high = (_bound(word, default) for word, default in zip(entry.bounds, (-math.inf, math.inf), strict=True))
    return Value(value, max(value - half, low), min(value + half, high), tuple(map(float, draws)), why)


def _bound(word: str, default: float) -> float:
    try:
        return float(word)
    except ValueError:  # "none", or an expression in the numbers of classes
        return default


def _lack(entry: Entry, sample: Sample, source: Sample | None) -> str:
    if sample.regression and not entry.regression:
        return "it is about classes, and labels are numbers here"
    if SOURCE in entry.needs and source is None:
        return "it compares with rows that models were trained on: name them as the source (--source)"
    return ""


def _halve(labels: NDArray[Any], random: np.random.Generator) -> Places:
    """Half of the places of each class; of an odd number of them, by chance one more or one less, but one at least."""
    kept = []
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        kept.append(random.permutation(places)[: max(1, (len(places) + int(random.integers(2))) // 2)])
    return np.sort(np.concatenate(kept))

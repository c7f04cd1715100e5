"""What the pictures and tables show, counted from the predictions."""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class Score:
    """Precision, recall and F1 of one label; None where nothing was predicted, or nothing was there."""

    precision: float | None
    recall: float | None
    f1: float | None
    items: int


@dataclass(frozen=True)
class Bin:
    """The predictions whose confidence lies between ``low`` and ``high``."""

    low: float
    high: float
    items: int
    confidence: float   # mean
    accuracy: float


def score(hits: int, predicted: int, actual: int) -> Score:
    """The score of a label that was rightly predicted ``hits`` times."""
    return Score(hits / predicted if predicted else None, hits / actual if actual else None,
                 2 * hits / (predicted + actual) if predicted + actual else None, actual)


def confusion(pairs: Iterable[tuple[str, str]], labels: Sequence[str]) -> list[list[int]]:
    """How often each label (row) was taken for each label (column), from pairs of target and prediction."""
    place = {label: i for i, label in enumerate(labels)}
    counts = [[0] * len(labels) for _ in labels]
    for target, prediction in pairs:
        counts[place[target]][place[prediction]] += 1
    return counts


def label_scores(counts: Sequence[Sequence[int]]) -> list[Score]:
    """One score per label of a confusion matrix."""
    predicted = [sum(column) for column in zip(*counts, strict=True)]
    return [score(row[i], predicted[i], sum(row)) for i, row in enumerate(counts)]


def mixed_up(counts: Sequence[Sequence[int]], most: int = 20) -> list[tuple[int, int, int]]:
    """The pairs (target, prediction, how often) that were confused most, worst first."""
    pairs = [(i, j, n) for i, row in enumerate(counts) for j, n in enumerate(row) if n and i != j]
    return sorted(pairs, key=lambda pair: -pair[2])[:most]


def bins(confidences: Sequence[float], right: Sequence[bool], number: int = 15) -> list[Bin]:
    """The predictions in ``number`` bins of equal width, each open below and closed above; empty bins are left out."""
    members: list[list[tuple[float, bool]]] = [[] for _ in range(number)]
    for confidence, hit in zip(confidences, right, strict=True):
        members[min(max(math.ceil(confidence * number) - 1, 0), number - 1)].append((confidence, hit))
    return [Bin(i / number, (i + 1) / number, len(held), fmean(c for c, _ in held), fmean(h for _, h in held))
            for i, held in enumerate(members) if held]


def calibration_error(filled: Sequence[Bin]) -> float:
    """Expected calibration error (Naeini, Cooper, Hauskrecht, AAAI 2015): |accuracy - confidence| averaged over predictions."""
    return sum(b.items * abs(b.accuracy - b.confidence) for b in filled) / sum(b.items for b in filled)


def likelihood(given: Sequence[float]) -> float:
    """Mean negative log likelihood, in nats, of the probabilities that were given to what was true."""
    return -fmean(math.log(max(p, 1e-12)) for p in given)


def likely(hits: float, items: int) -> tuple[float, float]:
    """95 % interval of a share seen as ``hits`` (a fraction) on ``items`` (Wilson, JASA 1927)."""
    z = 1.959964
    middle = (hits + z * z / (2 * items)) / (1 + z * z / items)
    half = z * math.sqrt(hits * (1 - hits) / items + z * z / (4 * items * items)) / (1 + z * z / items)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Entities (kind, first token, token after the last) of BIO tags; an I- that continues nothing begins one."""
    found: set[tuple[str, int, int]] = set()
    kind, start = "", 0
    for i, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        if kind and not (mark == "I" and name == kind):
            found.add((kind, start, i))
            kind = ""
        if not kind and mark in ("B", "I"):
            kind, start = name, i
    return found


def entity_scores(pairs: Iterable[tuple[Sequence[str], Sequence[str]]]) -> dict[str, Score]:
    """Score per kind of entity over whole spans, or per tag if they are not BIO, from pairs of target and predicted tags."""
    seen = list(pairs)
    bio = all(tag == "O" or tag[:2] in ("B-", "I-") for target, _ in seen for tag in target)
    hits: dict[str, list[int]] = {}
    for target, prediction in seen:
        true = spans(target) if bio else {(tag, i, i) for i, tag in enumerate(target)}
        said = spans(prediction) if bio else {(tag, i, i) for i, tag in enumerate(prediction)}
        for column, group in enumerate((true & said, said, true)):
            for kind, _, _ in group:
                hits.setdefault(kind, [0, 0, 0])[column] += 1
    return {kind: score(*three) for kind, three in sorted(hits.items())}

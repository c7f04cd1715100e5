"""What the pictures and tables show, counted from the predictions."""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from thrifty.evaluate.entities import find_entities, is_entity_scheme


@dataclass(frozen=True)
class Score:
    """Precision, recall and F1 of one label; None where nothing was predicted, or nothing was there."""

    precision: float | None
    recall: float | None
    f1: float | None
    items: int


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


def likely(hits: float, items: int) -> tuple[float, float]:
    """95 % interval of a share seen as ``hits`` (a fraction) on ``items`` (Wilson, JASA 1927)."""
    z = 1.959964
    middle = (hits + z * z / (2 * items)) / (1 + z * z / items)
    half = z * math.sqrt(hits * (1 - hits) / items + z * z / (4 * items * items)) / (1 + z * z / items)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def entity_scores(pairs: Iterable[tuple[Sequence[str], Sequence[str]]], labels: Sequence[str]) -> dict[str, Score]:
    """Score per kind of entity over whole entities, from pairs of target and predicted tags; per tag if they mark none."""
    find = find_entities if is_entity_scheme(labels) else _single
    hits: dict[str, list[int]] = {}
    for target, prediction in pairs:
        true, said = find(target), find(prediction)
        for column, group in enumerate((true & said, said, true)):
            for kind, _, _ in group:
                hits.setdefault(kind, [0, 0, 0])[column] += 1
    return {kind: score(*three) for kind, three in sorted(hits.items())}


def _single(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    return {(tag, place, place) for place, tag in enumerate(tags)}

"""A score, and scores that only mean something beside those of the other models."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.core.errors import BadData


class Score(float):
    """How well a model should transfer: a number, higher is better, with ``details`` on how it came about (plain JSON).

    A score of several ``parts`` (NCTI, ETran) is their sum with ``weights``. Its papers scale each part to [0, 1] over the
    candidates first, which `over_hub` does: until then such numbers compare only roughly.

    Raises:
        BadData: the value is no finite number, as when features are so small that their squares vanish.
    """

    details: dict[str, Any]
    parts: dict[str, float]
    weights: dict[str, float]

    def __new__(cls, value: float, *, parts: Mapping[str, float] | None = None, weights: Mapping[str, float] | None = None,
                **details: Any) -> Score:
        if not all(map(math.isfinite, (value, *(parts or {}).values()))):
            raise BadData(f"the score is {float(value)}: the features are too large, or too small, for it.")
        score = super().__new__(cls, value)
        score.details, score.parts, score.weights = details, dict(parts or {}), dict(weights or {})
        return score


def weigh_parts(parts: Mapping[str, float], weights: Mapping[str, float], **details: Any) -> Score:
    """The score that has these ``parts``."""
    return Score(sum(weights[name] * value for name, value in parts.items()), parts=parts, weights=weights, **details)


def over_hub(scores: Sequence[Score]) -> list[Score]:
    """One score per candidate, each part scaled to [0, 1] over the candidates; a part on which all agree counts as 0.

    Adding a candidate can change all of them.

    Raises:
        BadData: no scores, or scores without the same parts.
    """
    if not scores or not all(score.parts for score in scores) or any(score.weights != scores[0].weights for score in scores):
        raise BadData("over_hub needs the scores of one function whose scores have parts, one per model: those of ncti or etran.")
    scaled: list[dict[str, float]] = [{} for _ in scores]
    for name in scores[0].weights:
        values = [score.parts[name] for score in scores]
        low, width = min(values), max(values) - min(values)
        for parts, value in zip(scaled, values, strict=True):
            parts[name] = (value - low) / width if width > 0 else 0.0
    return [weigh_parts(parts, scores[0].weights, **score.details) for parts, score in zip(scaled, scores, strict=True)]

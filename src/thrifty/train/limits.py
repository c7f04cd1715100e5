"""Limits: what the settings of a training say of its task."""
from __future__ import annotations

from typing import Any

from thrifty.data import Dataset, Several
from thrifty.data.several import each
from thrifty.train.settings import Settings

LIMITS = ("max_length", "max_new_tokens", "templates", "metric", "augment", "max_steps", "feedback")


def find_limits(dataset: Dataset | Several, settings: Settings) -> dict[str, Any]:
    """What ``tasks.get`` takes beside the labels: of one dataset, or under ``parts`` of each of several."""
    if not isinstance(dataset, Several):
        return _of(dataset, settings, {name: getattr(settings, name) for name in LIMITS})
    names = list(dataset.parts)
    told = {name: each(getattr(settings, name), names, name) for name in LIMITS}
    return {"parts": {name: {"task": part.task, **_of(part, settings, {limit: told[limit][name] for limit in LIMITS})}
                      for name, part in dataset.parts.items()}}


def _of(dataset: Dataset, settings: Settings, told: dict[str, Any]) -> dict[str, Any]:
    """What is ``told`` of one dataset, and of its format if it has one."""
    if dataset.format is not None:
        told |= {"format": dataset.format, "words": dataset.words, "answer": settings.answer}
    return {name: value for name, value in told.items() if value is not None}

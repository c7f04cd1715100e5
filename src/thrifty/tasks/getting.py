"""The tasks by name."""
from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from thrifty.core.errors import NoSuchSetting, nearest
from thrifty.models.backbone import Backbone
from thrifty.tasks.task import Task

_CLASSES = {
    "text-classification": "TextClassification",
    "regression": "Regression",
    "token-classification": "TokenClassification",
    "multiple-choice": "MultipleChoice",
    "causal-generation": "CausalGeneration",
    "seq2seq-generation": "Seq2SeqGeneration",
    "image-classification": "ImageClassification",
}


def names() -> list[str]:
    """Every task there is."""
    return list(_CLASSES)


def get(name: str, backbone: Backbone, labels: Sequence[str] | None = None, **limits: Any) -> Task:
    """The task called ``name`` for a backbone and its label space; ``limits`` are its settings, such as ``max_length``.

    Raises: NoSuchSetting for an unknown task, limit or value; BadData for labels that do not fit.
    """
    if name not in _CLASSES:
        raise NoSuchSetting(f"task {name!r} is unknown.{nearest(name, _CLASSES)}")
    module = importlib.import_module(f"thrifty.tasks.{name.replace('-', '_')}")
    task: Task = getattr(module, _CLASSES[name])(backbone, labels, **limits)
    return task

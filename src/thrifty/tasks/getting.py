"""The tasks by name."""
from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from thrifty.clip import ImageTextModel
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
    "masked-language": "MaskedLanguage",
    "image-classification": "ImageClassification",
    "contrastive": "Contrastive",
    "navigation": "Navigation",
}


def names() -> list[str]:
    """Every task there is."""
    return list(_CLASSES)


def get(name: str, backbone: Backbone, labels: Any = None, **limits: Any) -> Task:
    """The task called ``name`` for a backbone and its label space; ``limits`` are its settings, such as ``max_length``.

    With a limit ``format`` a language model answers it in words: see `thrifty.tasks.spoken`. "several" is several tasks at once,
    with labels by task and one limit, ``parts``: see `thrifty.tasks.several`.

    Raises: NoSuchSetting for an unknown task, limit or value; BadData for labels that do not fit.
    """
    if name == "several":
        from thrifty.tasks.several import Several

        return Several(backbone, labels, **limits)
    if name not in _CLASSES:
        raise NoSuchSetting(f"task {name!r} is unknown.{nearest(name, _CLASSES)}")
    if limits.get("format") is not None:
        from thrifty.tasks.ranked import answering

        return answering(name, backbone, labels, **limits)
    module, kind = name.replace("-", "_"), _CLASSES[name]
    if name == "multiple-choice" and writes(backbone.model):
        reads = getattr(getattr(backbone.model, "config", None), "is_encoder_decoder", False)
        module, kind = "ranked_choice", "Seq2SeqChoice" if reads else "CausalChoice"
    if name == "image-classification" and isinstance(backbone.model, ImageTextModel):
        module, kind = "image_text", "ImageTextClassification"
    task: Task = getattr(importlib.import_module(f"thrifty.tasks.{module}"), kind)(backbone, labels, **limits)
    return task


def writes(model: nn.Module) -> bool:
    """Whether the model writes text: then it ranks choices by their likelihood, where others have a head that scores them."""
    can = getattr(model, "can_generate", None)
    return callable(can) and bool(can())

"""The form in which a model is loaded: with a head for a task, or whole, to write answers."""
from __future__ import annotations

from typing import Any

from torch import nn

from thrifty.models import Backbone
from thrifty.models.finding import find
from thrifty.train.files import read_json


def form(task: str, format: str | None, model: str | nn.Module | Backbone) -> str:
    """The task whose form ``model`` is loaded in: ``task`` itself, unless a format has it answered in words."""
    if format is None:
        return task
    return "seq2seq-generation" if encodes_and_decodes(model) else "causal-generation"


def encodes_and_decodes(model: Any) -> bool:
    """Whether the model has an encoder and a decoder, by its configuration."""
    if not isinstance(model, str):
        module = model.model if isinstance(model, Backbone) else model
        return bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))
    return not model.startswith("timm:") and bool(read_json(find(model).folder / "config.json").get("is_encoder_decoder"))

"""The form in which a model is loaded: with a head for a task, or whole, to write answers."""
from __future__ import annotations

from collections.abc import Mapping
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
    return not model.startswith(("timm:", "zoo:")) and bool(read_json(find(model).folder / "config.json").get("is_encoder_decoder"))


def form_of(about: Mapping[str, Any]) -> tuple[str, Any]:
    """The form in which the base model of an adapter is loaded, with labels, by what the adapter says ``about`` itself."""
    task, labels = about["task"], about.get("labels")
    shape = about.get("form", task)
    if task != "several":
        return shape, labels if shape == task else None
    parts = about["limits"]["parts"]
    own = [found for name, part in parts.items() if part["task"] == shape and part.get("format") is None
           and (found := (labels or {}).get(name))]
    return shape, max(own, key=len, default=None)

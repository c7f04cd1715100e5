"""Invented rows, where a plan is made without data: as many as a step takes, each as long as a row may be."""
from __future__ import annotations

from typing import Any

from torch import nn

from thrifty.core.errors import NoSuchSetting, nearest
from thrifty.data import Dataset
from thrifty.data.tasks import TASKS
from thrifty.models.kinds import AUTO, LABELLED

CHOICES = 4  # of a row, where the task is to choose


def guess_task(model: nn.Module) -> str:
    """What a model is most likely adapted to, by its configuration.

    Raises:
        NoSuchSetting: it has none.
    """
    import transformers

    config = getattr(model, "config", None)
    if config is None and not hasattr(model, "default_cfg"):  # timm's models have that
        raise NoSuchSetting(f"{type(model).__name__} does not say what it is for: give task (--task)")
    saved = (getattr(config, "architectures", None) or [""])[0]
    seen: Any = transformers.AutoModelForImageClassification
    if config is None or type(config) in seen._model_mapping or hasattr(config, "vision_config"):
        return "image-classification"
    if getattr(config, "is_encoder_decoder", False):
        return "seq2seq-generation"
    return "causal-generation" if saved.endswith(("ForCausalLM", "LMHeadModel")) else "text-classification"


def invent(task: str, rows: int, length: int, labels: int) -> Dataset:
    """``rows`` rows of ``length`` tokens (or blank pictures) with ``labels`` classes, for training and for validation alike.

    Every other text is shorter, as texts are: batches need masks.

    Raises:
        NoSuchSetting: there is no such task.
    """
    if task not in TASKS:
        raise NoSuchSetting(f"task {task!r} is unknown." + nearest(task, AUTO))
    names = [f"label {i}" for i in range(labels)] if task in LABELLED else None
    column = {role: [_value(role, length, row) for row in range(rows)] for role in TASKS[task].needed}
    return Dataset({"train": column, "validation": column}, {}, task, names, {"source": {"name": "invented rows"}})


def _value(role: str, length: int, row: int) -> Any:
    if role == "image":
        from PIL import Image

        return Image.new("RGB", (32, 32))
    words = ["word"] * (length if row % 2 == 0 else length // 4 + 1)
    return {"label": row % 2, "tokens": words, "tags": [0] * len(words), "choices": ["word"] * CHOICES}.get(role, " ".join(words))

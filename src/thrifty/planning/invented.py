"""Invented rows, where a plan is made without data: as many as a step takes, each as long as a row may be."""
from __future__ import annotations

from typing import Any

from thrifty.core.errors import NoSuchSetting, nearest
from thrifty.data import Dataset
from thrifty.data.tasks import TASKS
from thrifty.models.kinds import AUTO, LABELLED

CHOICES = 4  # of a row, where the task is to choose


def guess_task(config: Any) -> str:
    """What a model of this configuration is most likely adapted to."""
    import transformers

    saved = (getattr(config, "architectures", None) or [""])[0]
    if type(config) in transformers.AutoModelForImageClassification._model_mapping or hasattr(config, "vision_config"):
        return "image-classification"
    if getattr(config, "is_encoder_decoder", False):
        return "seq2seq-generation"
    return "causal-generation" if saved.endswith(("ForCausalLM", "LMHeadModel")) else "text-classification"


def invent(task: str, rows: int, length: int, labels: int) -> Dataset:
    """``rows`` rows of ``length`` tokens (or blank pictures) with ``labels`` classes, for training and for validation alike.

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
    text = " ".join(["word"] * length)
    return {"label": row % 2, "tokens": ["word"] * length, "tags": [0] * length, "choices": ["word"] * CHOICES}.get(role, text)

"""Answers to new rows from a trained adapter."""
from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from thrifty import artifact, tasks
from thrifty.artifact.files import adapter_folder
from thrifty.core import Attachment
from thrifty.core.errors import BrokenArtifact
from thrifty.models import Backbone, load, wrap
from thrifty.tasks import Task
from thrifty.tasks.spoken import Spoken
from thrifty.train.inputs import from_texts, read_inputs
from thrifty.train.precision import choose
from thrifty.train.predicting import answer
from thrifty.train.processes import here
from thrifty.train.rows import name_prediction, read_input


@dataclass(frozen=True)
class Opened:
    """An adapter on its base model, and the task that it was trained for."""

    backbone: Backbone
    task: Task
    at: Attachment
    about: dict[str, Any]


def open_adapter(run: str | os.PathLike[str], model: str | nn.Module | Backbone | None = None, device: str = "cpu") -> Opened:
    """The adapter in ``run`` (the folder of a run, or of an adapter) on ``model``, by default the one it was trained on.

    Raises:
        BrokenArtifact: the folder holds no adapter, or one that does not say its task.
        WrongBase: ``model`` is not the one.
    """
    folder = adapter_folder(run)
    about = artifact.inspect(folder)["about"]
    lacking = [key for key in ("task", "model", "columns") if key not in about]
    if lacking:
        raise BrokenArtifact(f"{folder} does not say its {lacking[0]}, as adapters written by thrifty tune do: use thrifty.load")
    labels, form = about.get("labels"), about.get("form", about["task"])
    model = model if model is not None else about["model"]
    if isinstance(model, str):
        backbone = load(model, form, labels if form == about["task"] else None)
    else:
        backbone = model if isinstance(model, Backbone) else wrap(model)
    backbone.model.to(device)
    at = artifact.load(backbone.model, folder)
    return Opened(backbone, tasks.get(about["task"], backbone, labels, **about.get("limits", {})), at, about)


def predict(run: str | os.PathLike[str], data: Any = None, *, texts: Sequence[str] = (),
            model: str | nn.Module | Backbone | None = None, split: str | None = None, batch: int = 32,
            device: str = "auto", precision: str = "auto") -> list[dict[str, Any]]:
    """One answer per row: ``index``, ``input``, ``prediction`` in words, and ``scores`` in the order of the labels.

    Args:
        run: the folder of a run or of an adapter.
        data: anything that `thrifty.data.read` takes; labels are not needed, and not looked at.
        texts: texts to answer instead of data.
        model: the base model, where it is no longer where it was in training.
        split: which split of ``data``, where it has several.

    Raises:
        ThriftyError: nothing to answer, data without the columns of the training, a damaged adapter, another base model.
    """
    processes = here(device)
    opened = open_adapter(run, model, str(processes.device))
    task = opened.task
    format = task.format if isinstance(task, Spoken) else None
    if data is None:
        table = from_texts(list(texts), task.name, format)
    else:
        table = read_inputs(data, task.name, opened.about["columns"], split, format)
    examples = task.encode(table)
    found = answer(task.predict, task, opened.backbone.model, examples, batch, processes, choose(precision, processes.device))
    rows = [{role: column[i] for role, column in table.items()} for i in range(len(found))]
    return [{"index": i, "input": said.get("input", read_input(row)), "prediction": name_prediction(task, said, row),
             "scores": said.get("scores"), **({"written": said["written"]} if "written" in said else {})}
            for i, (said, row) in enumerate(zip(found, rows, strict=True))]

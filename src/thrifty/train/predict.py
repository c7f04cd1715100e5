"""Answers to new rows from a trained adapter."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from thrifty import artifact, tasks
from thrifty.artifact.files import adapter_folder
from thrifty.core import Attachment
from thrifty.core import task as told
from thrifty.core.errors import BrokenArtifact, NoSuchSetting
from thrifty.data.rows import Table
from thrifty.models import Backbone, load, wrap
from thrifty.models.preprocessing import refuse_other
from thrifty.tasks import Task
from thrifty.tasks.several import Several
from thrifty.tasks.spoken import Spoken
from thrifty.train.forms import form_of
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

    def choose(self, name: str | None) -> tuple[Task, dict[str, str]]:
        """The task called ``name``, or the only one, and which column played which role in it.

        Raises:
            NoSuchSetting: there are several and none is named, or not this one.
        """
        if isinstance(self.task, Several):
            return self.task.part(name), self.about["columns"][name]
        if name is not None:
            raise NoSuchSetting(f"this adapter learned one task and no {name!r}: leave the task's name away")
        return self.task, self.about["columns"]


def open_adapter(run: str | os.PathLike[str], model: str | nn.Module | Backbone | None = None, device: str = "cpu", *,
                 weights: str | None = None) -> Opened:
    """The adapter in ``run`` (the folder of a run, or of an adapter) on ``model``, by default the one it was trained on.

    Where ``weights`` are to be held otherwise than in training ("full" after "nf4"), the base is not compared.

    Raises:
        BrokenArtifact: the folder holds no adapter, or one that does not say its task.
        WrongBase: ``model`` is not the one, or its pictures are prepared otherwise.
    """
    folder = adapter_folder(run)
    about = artifact.inspect(folder)["about"]
    lacking = [key for key in ("task", "model", "columns") if key not in about]
    if lacking:
        raise BrokenArtifact(f"{folder} does not say its {lacking[0]}, as adapters written by thrifty tune do: use thrifty.load")
    labels = about.get("labels")
    model, held = model if model is not None else about["model"], about.get("weights", "full")
    if isinstance(model, str):
        backbone = load(model, *form_of(about), weights=weights or held)
    else:
        backbone = model if isinstance(model, Backbone) else wrap(model)
    refuse_other(about.get("image"), backbone.source.get("image"), str(folder))
    backbone.model.to(device)
    at = artifact.load(backbone.model, folder, base="same" if weights in (None, held) else "any")
    return Opened(backbone, tasks.get(about["task"], backbone, labels, **about.get("limits", {})), at, about)


def predict(run: str | os.PathLike[str], data: Any = None, *, texts: Sequence[str] = (),
            model: str | nn.Module | Backbone | None = None, split: str | None = None, batch: int = 32,
            device: str = "auto", precision: str = "auto", task_name: str | None = None) -> list[dict[str, Any]]:
    """One answer per row: ``index``, ``input``, ``prediction`` in words, and ``scores`` in the order of the labels.

    Args:
        run: the folder of a run or of an adapter.
        data: anything that `thrifty.data.read` takes; labels are not needed, and not looked at.
        texts: texts to answer instead of data.
        model: the base model, where it is no longer where it was in training.
        split: which split of ``data``, where it has several.
        task_name: which of the tasks that the adapter learned together.

    Raises:
        ThriftyError: nothing to answer, data without the columns of the training, a damaged adapter, another base model.
    """
    processes = here(device)
    opened = open_adapter(run, model, str(processes.device))
    task, columns = opened.choose(task_name)
    format = task.format if isinstance(task, Spoken) else None
    if data is None:
        table = from_texts(list(texts), task.name, format)
    else:
        table = read_inputs(data, task.name, columns, split, format)
    examples, precise = task.encode(table), choose(precision, processes.device)
    with told(opened.backbone.model, task_name) if task_name is not None else contextlib.nullcontext():
        found = answer(task.predict, task, opened.backbone.model, examples, batch, processes, precise)
    return write_answers(task, found, table)


def write_answers(task: Task, found: Sequence[dict[str, Any]], table: Table) -> list[dict[str, Any]]:
    """What was ``found`` for each row of a table, with the words of its input, or the path of its picture."""
    rows = [{role: column[i] for role, column in table.items()} for i in range(len(found))]
    return [{"index": i, "input": said.get("input", name_input(row)), "prediction": name_prediction(task, said, row),
             "scores": said.get("scores"), **({"written": said["written"]} if "written" in said else {})}
            for i, (said, row) in enumerate(zip(found, rows, strict=True))]


def name_input(row: dict[str, Any]) -> Any:
    """The texts of a row, or where its picture lies."""
    return row["image"] if isinstance(row.get("image"), str) else read_input(row)

"""The main job: read data, load a model, attach a method, train, measure once, write everything down."""
from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from thrifty import report
from thrifty.core import Method
from thrifty.core.errors import ThriftyError
from thrifty.data import Several
from thrifty.models import Backbone
from thrifty.train import chance
from thrifty.train.budget import Budget
from thrifty.train.checkpoint import refuse_other
from thrifty.train.choosing import choose_method, describe, resolve
from thrifty.train.files import read_json, write_json
from thrifty.train.finish import finish
from thrifty.train.folder import claim, free_name
from thrifty.train.guard import Guard
from thrifty.train.job import Job
from thrifty.train.precision import choose
from thrifty.train.processes import here
from thrifty.train.reading import count_rows, find_form, name_data, read_data, settle
from thrifty.train.run import Run
from thrifty.train.settings import Settings


def tune(model: str | nn.Module | Backbone, data: Any, method: str | Method | Mapping[str, Any] = "lora",
         out: str | os.PathLike[str] | None = None, *, settings: Settings | Mapping[str, Any] | None = None,
         resume: bool = False, overwrite: bool = False, progress: bool = True, command: str | None = None,
         budget: Budget | Mapping[str, Any] | None = None, **changes: Any) -> Run:
    """Adapt ``model`` to ``data`` with ``method``, and say honestly how well that went.

    Args:
        model: the built-in "minilm" or "vit-mini", a local folder, a hub id; or a module, or a `thrifty.models.Backbone` (a module
            and its tokenizer or image processor). A module comes back as it was: load the adapter to use it.
        data: anything that `thrifty.data.read` takes: files, folders, "cityline", a hub id, tables in memory. Or several of
            them by the names of their tasks, {"rte": folder, "mrpc": other}: then one model learns all, each batch from one.
        method: a name, a method such as ``thrifty.LoRA(rank=16)``, or ``{"name": "lora", "rank": 16}``.
        out: the run's folder; by default a new one under ``runs/``.
        settings, changes: see `thrifty.train.Settings`; ``changes`` are single settings by name, and come last.
        resume: go on with the run in ``out`` from its last checkpoint; a finished run is returned as it is.
        overwrite: replace the run in ``out``.
        progress: show progress on stderr.
        command: the command line that repeats the run, for the report.
        budget: {"memory": "2GiB", "time": "30m"}, one or both: what is predicted not to fit is refused before anything is loaded,
            with what would fit; and what exceeds it while it trains is stopped, with its checkpoint complete.

    Raises:
        ThriftyError: one of its kinds for every mistake in model, data, method, setting or folder, before anything trains.
        OverBudget: the training would not keep its budget, or did not.
        KeyboardInterrupt: after Ctrl-C; the checkpoint is complete, and the message says how to go on.
    """
    limits = Budget.make(budget)
    given = Settings.make({**(settings.plain() if isinstance(settings, Settings) else settings or {}), **changes})
    chosen, processes = choose_method(method), here(given.device)
    if resume and out is None:
        raise ThriftyError("resume needs to know which run: give its folder as out")
    dataset = read_data(data, given, model)
    precision = choose(given.precision, processes.device)
    shape = find_form(dataset, model, given)
    full = resolve(given, chosen, shape, count_rows(dataset, given.cap), processes.world, precision.name)
    full = replace(full, **settle(dataset, given))
    if limits:
        from thrifty.planning.refusing import refuse_over  # which knows this room

        refuse_over(model, dataset, chosen, full, shape, processes, precision, limits)
    names = {"model": name_model(model), "data": name_data(dataset)}
    config = {**names, "method": describe(chosen), **full.plain()}
    data_named = "-and-".join(names["data"]) if isinstance(dataset, Several) else names["data"]
    name = "-".join(brief(part)[:60] for part in (names["model"], data_named, chosen.name))
    folder = Path(out) if out is not None else free_name(Path("runs"), name)
    if processes.once(lambda: open_folder(folder, config, resume, overwrite)):
        return Run.read(folder)
    job = Job(model, shape, chosen, dataset, full, folder, config, processes, precision, progress, resume,
              Guard(limits, processes.device) if limits else None)
    with chance.kept():
        trained = [job.train(full.seed + i) for i in range(full.seeds)]
        return finish(job, trained, command)


def open_folder(folder: Path, config: dict[str, Any], resume: bool, overwrite: bool) -> bool:
    """Claim the folder and write the configuration; whether the run in it is finished already.

    Raises:
        ThriftyError: see `claim`; or the run to resume was configured otherwise.
    """
    finished = claim(folder, resume, overwrite)
    if resume and (folder / "config.json").is_file():
        refuse_other({"config": read_json(folder / "config.json")}, {"config": config}, folder)
    if finished:
        report.write(folder)
    else:
        write_json(folder / "config.json", config)
    return finished


def name_model(model: Any) -> str:
    """What reports call the model."""
    if isinstance(model, str):
        return model
    return str(model.source.get("id")) if isinstance(model, Backbone) else type(model).__name__


def brief(name: str) -> str:
    """The last part of a path or id, without a suffix."""
    return Path(name).stem

"""Learn half of the classes, and answer for the other half by their names alone.

The protocol is that of K. Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, arXiv:2203.05557.
"""
from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thrifty import tasks
from thrifty.clip import ImageTextModel
from thrifty.core import Method
from thrifty.core.errors import Unfit
from thrifty.data.halves import halves
from thrifty.models import Backbone
from thrifty.train.files import write_json
from thrifty.train.precision import choose
from thrifty.train.predict import open_adapter
from thrifty.train.predicting import answer
from thrifty.train.processes import here
from thrifty.train.reading import read_data
from thrifty.train.run import Run
from thrifty.train.settings import Settings
from thrifty.train.tune import tune

FILE = "base_to_new.json"
Pair = tuple[float, float]  # accuracy on learned classes, and on new ones


def base_to_new(model: str | Backbone, data: Any, method: str | Method | Mapping[str, Any] = "coop",
                out: str | os.PathLike[str] | None = None, *, settings: Settings | Mapping[str, Any] | None = None,
                **changes: Any) -> dict[str, Any]:
    """`tune` on the first half of the classes, and what the adapters say of the test rows of both halves, each among its own names.

    Returns what is also written to ``base_to_new.json`` in the run's folder: ``run``; accuracies ``base`` and ``new`` and their
    ``harmonic_mean`` for each of ``seeds``; their means, where ``harmonic_mean`` is that of the means, as tables have it, and
    ``mean_of_harmonic_means`` the other thing; and ``zero_shot``, the same model before training.

    Raises:
        Unfit: the model does not know classes by their names, or the method learned something that only its classes can use.
        ThriftyError: as `tune`; or there are fewer than four classes.
    """
    known = set(changes) & {"resume", "overwrite", "progress", "command"}
    running = {name: changes.pop(name) for name in known}
    given = Settings.make({**(settings.plain() if isinstance(settings, Settings) else settings or {}), **changes})
    base, new = halves(read_data(data, given, model))
    run = tune(model, base, method, out, settings={**given.plain(), "shots": None}, **running)
    table = new.test()
    seen, before = [], None
    for one in run.metrics["seeds"]:
        folder = run.folder / f"seed-{one['seed']}" if len(run.metrics["seeds"]) > 1 else run.folder
        trained, before = measure(folder / "adapter", model, given, new.labels or [], table)
        seen.append((one["test"]["accuracy"]["value"], trained))
    untrained = next((b["test"]["accuracy"]["value"] for b in run.metrics["baselines"] if b["name"] == "untrained"), None)
    found = summarise(run, seen)
    found["zero_shot"] = None if untrained is None or before is None else describe((untrained, before))
    write_json(run.folder / FILE, found)
    return found


def measure(adapter: Path, model: str | Backbone, settings: Settings, labels: list[str], table: Any) -> Pair:
    """Accuracy on the rows of ``table`` among ``labels`` alone, with the adapter and without it.

    Raises:
        Unfit: see `base_to_new`.
    """
    processes = here(settings.device)
    opened = open_adapter(adapter, model, str(processes.device))
    inside = opened.backbone.model
    if not isinstance(inside, ImageTextModel):
        opened.at.detach()
        raise Unfit(f"new classes are known by their names only to models such as CLIP and SigLIP, not to {type(inside).__name__}")
    task = tasks.get("image-classification", opened.backbone, labels, **opened.about["limits"])
    precision, examples = choose(settings.precision, processes.device), task.encode(table)

    def accuracy() -> float:
        said = answer(task.predict, task, inside, examples, settings.batch, processes, precision)
        return task.metrics(said, table)["accuracy"]

    try:
        with opened.at.disabled():
            before = accuracy()
        return accuracy(), before
    finally:
        opened.at.detach()


def harmonic_mean(base: float, new: float) -> float:
    """2 b n / (b + n), and 0 where both are."""
    return 2 * base * new / (base + new) if base + new else 0.0


def describe(pair: Pair) -> dict[str, float]:
    """Both accuracies and their harmonic mean."""
    return {"base": pair[0], "new": pair[1], "harmonic_mean": harmonic_mean(*pair)}


def summarise(run: Run, seen: list[Pair]) -> dict[str, Any]:
    """By seed, and their means."""
    means = (statistics.fmean(base for base, _ in seen), statistics.fmean(new for _, new in seen))
    return {"run": str(run.folder), **describe(means),
            "mean_of_harmonic_means": statistics.fmean(harmonic_mean(*pair) for pair in seen),
            "seeds": [describe(pair) for pair in seen], "zero_shot": None}

"""Planning: what trainings of one model by several methods would take, before any weight is read."""
from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from thrifty.core import Method
from thrifty.core.errors import NoSuchSetting, ThriftyError
from thrifty.data import Dataset, Several
from thrifty.methods import CATALOGUE, find
from thrifty.models import Backbone
from thrifty.models.outline import outline
from thrifty.planning import machine as machines
from thrifty.planning.calibrating import calibrate
from thrifty.planning.forecast import Forecast, foretell
from thrifty.planning.invented import guess_task, invent
from thrifty.planning.machine import Machine
from thrifty.planning.rehearsal import rehearse
from thrifty.planning.remedies import Search
from thrifty.planning.scene import ROUNDS, Scene, outline_backbone, set_scene
from thrifty.tasks.encoding import check_length, position_limit
from thrifty.train.budget import Budget
from thrifty.train.choosing import choose_method
from thrifty.train.precision import Precision, choose
from thrifty.train.predicting import length
from thrifty.train.processes import Processes, here
from thrifty.train.reading import count_rows, find_form, read_data
from thrifty.train.settings import Settings

Named = str | Method | Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """``forecasts`` are ordered: what fits first, and of that what needs least memory. ``refused`` are the methods that could not
    be rehearsed, with the reason; ``about`` says of what the plan is."""

    about: dict[str, Any]
    budget: Budget
    forecasts: tuple[Forecast, ...]
    refused: dict[str, str]

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"about": self.about, "budget": {"memory": self.budget.memory, "time": self.budget.time},
                "forecasts": [each.plain() for each in self.forecasts], "refused": self.refused}

    def __str__(self) -> str:
        from thrifty.planning.table import write

        return write(self)


def plan(model: str | nn.Module | Backbone, method: Named | Sequence[Named] = "all", data: Any = None, *,
         memory: str | int | None = None, time: str | float | None = None, task: str | None = None, labels: int | None = None,
         length: int | None = None, image_size: int | None = None, rows: int | None = None, machine: Machine | None = None,
         progress: bool = False, **changes: Any) -> Plan:
    """What a training by each method would take: memory, time, the adapter's size, and what it adds to later answers.

    No weights are loaded: of a named model its configuration is enough. Each method trains one step on tensors without numbers.

    Args:
        model, method: as `thrifty.tune` takes them; several methods in a list, or "all".
        data: what `thrifty.tune` takes; without it rows are invented, of ``length`` tokens (or pictures ``image_size`` wide), for a
            ``task`` with so many ``labels`` (two, if not said). ``rows`` is then how many there would be; without it the total time
            is not known, but how many steps a budget of time allows.
        memory, time: the budget, "8GiB" and "1h" or bytes and seconds.
        machine: what computes; by default this one, which is measured for some eight seconds the first time. Where it only emulates
            the precision, no time is predicted.
        progress: say on stderr which method is being rehearsed.
        changes: settings of training, see `thrifty.train.Settings`.

    Raises:
        ThriftyError: one of its kinds for every mistake in model, data, method, setting or budget; of a single method also what
            the run itself would refuse.
    """
    budget, settings = Budget.make({"memory": memory, "time": time}), Settings.make(changes)
    refuse_meaningless(data, settings, rows=rows, labels=labels, image_size=image_size, length=length)
    settings = replace(settings, task=task or settings.task, max_length=length or settings.max_length)
    chosen = choose_methods(method)
    processes = here(settings.device)
    precision = choose(settings.precision, processes.device)
    if data is None:
        scene = invent_scene(model, settings, processes, precision, labels or 2, image_size, rows)
    else:
        scene = read_scene(model, data, settings, processes, precision)
    machine = machine or find_machine(processes, precision, budget, progress)
    forecasts, refused = [], {}
    for name, one in chosen.items():
        if progress:
            print(f"rehearsing {name} …", file=sys.stderr, flush=True)
        try:
            forecasts.append(foresee(scene, one if isinstance(one, Method) else choose_method(one), machine, budget))
        except ThriftyError as error:
            if len(chosen) == 1:
                raise
            refused[name] = str(error)
        except Exception as error:  # what looks at numbers fails in as many ways as there are to look
            refused[name] = unrehearsed(error)
    ranked = sorted(forecasts, key=lambda each: (not each.fits, each.memory.peak))
    return Plan({**describe(scene), "machine": machine.about if machine is not None else None}, budget, tuple(ranked), refused)


def foresee(scene: Scene, method: Method, machine: Machine | None, budget: Budget) -> Forecast:
    """The forecast of one method, with what would make it fit if it does not."""
    found = rehearse(scene, method)
    forecast = foretell(found, method, scene.rows, machine, budget)
    if forecast.fits:
        return forecast
    return replace(forecast, remedies=tuple(Search(scene, method, machine, budget, found).remedies()))


def choose_methods(method: Named | Sequence[Named]) -> dict[str, Named]:
    """The methods by name. All are checked when their turn comes, but names that do not exist are refused at once.

    Raises:
        NoSuchSetting: an unknown method or setting.
    """
    if method == "all":
        return {name: name for name in CATALOGUE}
    several = [method] if isinstance(method, (str, Method, Mapping)) else list(method)
    if not several:
        raise NoSuchSetting("there is no method to plan with: name some, or all")
    found: dict[str, Named] = {}
    for one in several:
        name = one.name if isinstance(one, Method) else str(one.get("name")) if isinstance(one, Mapping) else one
        find(name)
        if name in found:
            raise NoSuchSetting(f"the method {name!r} stands twice: plan one after the other")
        found[name] = one
    return found


def invent_scene(model: Any, settings: Settings, processes: Processes, precision: Precision, labels: int = 2,
                 image_size: int | None = None, rows: int | None = None) -> Scene:
    """The scene of a training on invented rows, of as many tokens as ``settings`` allow.

    Raises:
        NoSuchSetting: texts have no width, and pictures no length; or there are several tasks.
    """
    whole: Any = outline(model) if isinstance(model, str) else model.model if isinstance(model, Backbone) else model
    kind = settings.task or guess_task(whole)
    if not isinstance(kind, str):
        raise NoSuchSetting(f"a plan is of one dataset, and so of one task, not of {', '.join(kind)}")
    strange = ("length", settings.max_length) if kind == "image-classification" else ("image_size", image_size)
    if strange[1] is not None:
        raise NoSuchSetting(f"{strange[0]} is {strange[1]}, but rows of {kind} have none: leave it out")
    size = settings.max_length or check_length(None, position_limit(Backbone(whole)))
    dataset = invent(kind, settings.batch * ROUNDS, size, labels)
    backbone = outline_backbone(model, kind, dataset.labels, reads=False, side=image_size)
    told = settings if kind == "image-classification" else replace(settings, max_length=size)
    judged = None if rows is None else (rows, max(1, rows // 8))  # as data is carved: eight of ten to train on, one to judge by
    return set_scene(backbone, kind, dataset, told, processes, precision, judged, real=False)


def read_scene(model: Any, data: Any, settings: Settings, processes: Processes, precision: Precision) -> Scene:
    """The scene of a training on rows that are there."""
    whole = outline(model) if isinstance(model, str) else model
    dataset = read_data(data, settings, whole)
    if isinstance(dataset, Several):
        raise NoSuchSetting("a plan is of one dataset: give them one by one")
    form = find_form(dataset, whole, settings)
    backbone = outline_backbone(model, form, dataset.labels if form == dataset.task else None, reads=True)
    return set_scene(backbone, form, dataset, settings, processes, precision, count(dataset))


def count(dataset: Dataset) -> tuple[int, int]:
    """Rows to train on and to validate on."""
    return count_rows(dataset, None), len(next(iter(dataset.splits["validation"].values())))


def refuse_meaningless(data: Any, settings: Settings, **sizes: int | None) -> None:
    """Refuse ``sizes`` of invented rows that are none, or that the data or the settings say already.

    Raises:
        NoSuchSetting: naming the size.
    """
    for name, value in sizes.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise NoSuchSetting(f"{name} must be a whole number of at least 1, not {value!r}")
        if value is not None and data is not None and name != "length":
            raise NoSuchSetting(f"{name}: the data says that, so give one of them")
    if sizes["length"] is not None and settings.max_length is not None:
        raise NoSuchSetting("length and max_length are the same: give one of them")


def describe(scene: Scene) -> dict[str, Any]:
    """Of what a plan is."""
    settings = scene.settings
    return {"model": scene.backbone.source.get("id"), "task": scene.dataset.task, "batch": settings.batch,
            "accumulate": settings.accumulate, "longest": max(map(length, scene.largest)) or None,
            "rows": None if scene.rows is None else list(scene.rows), "precision": scene.precision.name,
            "checkpointing": settings.checkpointing, "device": str(scene.processes.device)}


def find_machine(processes: Processes, precision: Precision, budget: Budget, progress: bool) -> Machine | None:
    """What is known of this machine, which is measured the first time; None where it only emulates the ``precision``.

    Raises:
        NoSuchSetting: then, if the ``budget`` is one of time.
    """
    if precision.warning is not None:
        if budget.time is not None:
            raise NoSuchSetting(f"time: this machine only emulates {precision.name}, so no time is predicted: ask for another "
                                "precision, or give none")
        return None
    if (known := machines.recall(processes.device)) is not None:
        return known
    if progress:
        print("measuring this machine, once, for some eight seconds …", file=sys.stderr, flush=True)
    machines.remember(found := calibrate(processes.device))
    return found


def unrehearsed(error: Exception) -> str:
    """Why a method cannot be planned with."""
    said = (str(error).strip().splitlines() or ["no message"])[0][:160]
    return f"a step cannot be rehearsed on tensors without numbers ({type(error).__name__}: {said})"

"""Refusing: a training that is predicted not to keep its budget does not begin."""
from __future__ import annotations

from typing import Any

from thrifty.core import Method
from thrifty.core.errors import NoSuchSetting, OverBudget, ThriftyError
from thrifty.data import Dataset, Several
from thrifty.planning.forecast import Forecast
from thrifty.planning.forecasting import count, find_machine, foresee, unrehearsed
from thrifty.planning.scene import outline_backbone, set_scene
from thrifty.report import numbers
from thrifty.train.budget import Budget
from thrifty.train.precision import Precision
from thrifty.train.processes import Processes
from thrifty.train.settings import Settings


def refuse_over(model: Any, dataset: Dataset, method: Method, settings: Settings, form: str, processes: Processes,
                precision: Precision, budget: Budget) -> None:
    """Refuse a run of ``method``, whose ``settings`` have no gaps, if it is predicted not to keep its ``budget``.

    Raises:
        OverBudget: it is; the message says by how much, and what would make it fit.
        NoSuchSetting: what it takes cannot be predicted: it is of several datasets, in several processes, or looks at numbers.
    """
    if isinstance(dataset, Several) or processes.world > 1:
        raise NoSuchSetting("budget: only a training of one dataset in one process is predicted, so no other can be given one")
    machine = find_machine(processes, precision, budget, True) if budget.time is not None else None
    backbone = outline_backbone(model, form, dataset.labels if form == dataset.task else None, reads=True)
    scene = set_scene(backbone, form, dataset, settings, processes, precision, count(dataset))
    try:
        found = foresee(scene, method, machine, budget)
    except ThriftyError:
        raise
    except Exception as error:  # as in a plan
        raise NoSuchSetting(f"budget: what {method.name} takes is not known before it trains, so it cannot be given one: "
                            f"{unrehearsed(error)}") from error
    if not found.fits:
        raise OverBudget(explain(found, budget))


def explain(found: Forecast, budget: Budget) -> str:
    """By how much a training is over its budget, and what would make it fit."""
    taken = []
    if "memory" in found.over and budget.memory is not None:
        taken.append(f"{numbers.size(found.memory.peak)} of tensors, where the budget is {numbers.size(budget.memory)}")
    if "time" in found.over and budget.time is not None and found.time is not None and found.time.total is not None:
        taken.append(f"{numbers.seconds(found.time.total)}, where the budget is {numbers.seconds(budget.time)}")
    ways = "; ".join(each.words for each in found.remedies)
    then = f"It would fit with {ways}" if ways else "Nothing that was tried makes it fit: choose another method (thrifty plan)"
    return f"{found.method} would take {', and '.join(taken)}. {then}"

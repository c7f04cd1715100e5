"""Forecast: what a training of one method would take, and whether that fits a budget."""
from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from thrifty.core import Method
from thrifty.planning.machine import Machine
from thrifty.planning.memory import Memory
from thrifty.planning.rehearsal import Rehearsed
from thrifty.train.budget import Budget
from thrifty.train.training import evaluation_steps


@dataclass(frozen=True)
class Time:
    """Seconds of one ``step``, of the whole run's training and evaluations (``total``, None where the number of rows is not known),
    and ``added`` for each example that is answered later. Reading data and loading the model are none of it."""

    step: float
    total: float | None
    added: float | None


@dataclass(frozen=True)
class Remedy:
    """A change of the training that was computed, and what it would take then. ``settings`` are those of `thrifty tune`."""

    words: str
    settings: dict[str, Any]
    peak: int
    total: float | None


@dataclass(frozen=True)
class Forecast:
    """Of one method: parameters that train, bytes of the ``adapter``'s file, ``flops`` that it adds for each example that is
    answered (None where that depends on the example), memory, and time if the machine is known. ``steps`` are those of the whole
    run, None where the number of rows is not known; ``affordable`` are then those that the budget's time allows. ``over`` names
    what of the budget is too small, and ``remedies`` are what would make it fit."""

    method: str
    trainable: int
    adapter: int
    flops: int | None
    memory: Memory
    time: Time | None
    steps: int | None
    affordable: int | None = None
    over: tuple[str, ...] = ()
    remedies: tuple[Remedy, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether it keeps the budget."""
        return not self.over

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "fits": self.fits, "over": list(self.over), "remedies": [asdict(each) for each in self.remedies]}


def foretell(found: Rehearsed, method: Method, rows: tuple[int, int] | None, machine: Machine | None, budget: Budget) -> Forecast:
    """From what was rehearsed to what the run will take."""
    time, steps = _time(found, method, rows, machine) if machine is not None else None, count_steps(found, rows)
    flops = None
    if method.mergeable:
        flops = 0
    elif found.answer is not None and found.plain is not None:
        flops = (found.answer.flops - found.plain.flops) // found.examples
    over = ["memory"] if budget.memory is not None and found.memory.peak > budget.memory else []
    affordable = None
    if budget.time is not None and time is not None:
        if time.total is None and time.step:
            affordable = int(budget.time / time.step)
        if affordable == 0 or (time.total is not None and time.total > budget.time):
            over.append("time")
    return Forecast(method.name, found.trainable, found.adapter, flops, found.memory, time, steps, affordable, tuple(over))


def count_steps(found: Rehearsed, rows: tuple[int, int] | None) -> int | None:
    """Steps of the whole run, over all seeds."""
    if rows is None:
        return None
    if found.learn is None:
        return 0
    return found.settings.seeds * _steps(found, rows[0])[0]


def _steps(found: Rehearsed, rows: int) -> tuple[int, int]:
    """Steps of one training, and of one epoch."""
    settings = found.settings
    per_epoch = math.ceil(rows / (settings.batch * settings.accumulate))
    return max(1, math.ceil((settings.epochs or 1.0) * per_epoch)), per_epoch


def _time(found: Rehearsed, method: Method, rows: tuple[int, int] | None, machine: Machine) -> Time:
    answer, settings = None if found.answer is None else machine.seconds(found.answer), found.settings
    step = added = 0.0
    if found.learn is not None and found.update is not None:
        step = settings.accumulate * machine.seconds(found.learn) + machine.seconds(found.update)
    if answer is not None and found.plain is not None and not method.mergeable:
        added = (answer - machine.seconds(found.plain)) / found.examples
    total = None
    if rows is not None and answer is not None:
        every, per_epoch = _steps(found, rows[0])
        looks = len(evaluation_steps(every, per_epoch, settings.evaluations)) if found.learn is not None else 1
        judging = looks * math.ceil(rows[1] / settings.batch) * answer
        total = settings.seeds * ((every if found.learn is not None else 0) * step + judging)
        total += math.ceil(sum(rows) / settings.batch) * machine.seconds(found.below) if found.below is not None else 0.0
    return Time(step, total, None if answer is None else added)

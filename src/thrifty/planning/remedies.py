"""Remedies: what would make a training fit its budget. Each is rehearsed before it is said."""
from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from thrifty.core import Method
from thrifty.core.errors import ThriftyError
from thrifty.core.saving import LEVELS
from thrifty.planning.cached import keep_trunk
from thrifty.planning.forecast import Forecast, Remedy, foretell
from thrifty.planning.machine import Machine
from thrifty.planning.rehearsal import Rehearsed, rehearse
from thrifty.planning.scene import Scene
from thrifty.report import numbers
from thrifty.train.budget import Budget
from thrifty.train.settings import Settings


@dataclass(frozen=True)
class Search:
    """For what would let ``method`` fit the ``budget``, where ``found`` is what was rehearsed without it."""

    scene: Scene
    method: Method
    machine: Machine | None
    budget: Budget
    found: Rehearsed

    def remedies(self) -> Iterator[Remedy]:
        """Whatever suffices: a smaller batch, fewer activations, both, weights in four bits; a kept trunk, fewer epochs."""
        memory = self.budget.memory
        if memory is None or self.found.memory.peak <= memory:
            yield from self._keep()
            yield from self._settle({}, self.found)
            return
        now, alone = self.found.memory, [*self._pack()]
        if now.weights + now.kept + now.best + now.gradients + now.optimizer <= memory:  # else no batch is small enough
            alone = [*self._shrink({}), *self._spare(), *alone]
            if not alone and not self.scene.settings.checkpointing:
                alone = [*self._shrink({"checkpointing": True})]
        for changes, found in alone:
            yield from self._settle(changes, found)

    def _try(self, changes: dict[str, Any]) -> Rehearsed:
        return rehearse(self.scene.change(**changes), self.method)

    def _shrink(self, changes: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Rehearsed]]:
        """The largest batch that fits, accumulated to as many rows a step as were asked for."""
        settings, memory = self.scene.settings, self.budget.memory or 0
        rows = settings.batch * settings.accumulate
        if settings.batch == 1 or self.found.learn is None:
            return

        def change(batch: int) -> dict[str, Any]:
            return {**changes, "batch": batch, "accumulate": math.ceil(rows / batch)}

        with contextlib.suppress(ThriftyError):
            least = self._try(change(1))
            if least.memory.peak > memory:
                return
            grows = (self.found.memory.peak - least.memory.peak) / (settings.batch - 1)  # too much, if it is checkpointed
            batch = min(settings.batch - 1, 1 + int((memory - least.memory.peak) / max(grows, 1.0)))
            while batch > 1 and (more := self._try(change(batch))).memory.peak > memory:
                batch = batch * 3 // 4
            yield change(batch), more if batch > 1 else least

    def _spare(self) -> Iterator[tuple[dict[str, Any], Rehearsed]]:
        """Fewer activations kept: the first that suffices of what costs little time and what costs most."""
        settings = self.scene.settings
        if settings.checkpointing or self.found.learn is None:
            return
        more: list[dict[str, Any]] = [{"activations": level} for level in LEVELS[LEVELS.index(settings.activations) + 1 :]]
        for changes in [*more, {"checkpointing": True}]:
            with contextlib.suppress(ThriftyError):  # not every model can be told to compute activations twice
                found = self._try(changes)
                if found.memory.peak <= (self.budget.memory or 0):
                    yield changes, found
                    return

    def _pack(self) -> Iterator[tuple[dict[str, Any], Rehearsed]]:
        """Frozen weights in four bits, where the model is loaded by its name; alone, or else with activations computed twice."""
        settings: Settings = self.scene.settings
        if settings.weights != "full" or not self.scene.named:
            return
        for more in [{}] if settings.checkpointing or self.found.learn is None else [{}, {"checkpointing": True}]:
            with contextlib.suppress(ThriftyError, RuntimeError):  # a method may want weights, or read them as numbers
                changes = {"weights": "nf4", **more}
                found = self._try(changes)
                if found.memory.peak <= (self.budget.memory or 0):
                    yield changes, found
                    return

    def _keep(self) -> Iterator[Remedy]:
        """The frozen part computed once for each row, where something can be kept and the time for it is there."""
        if self.scene.settings.cache != "off" or self.found.learn is None:
            return
        with contextlib.suppress(ThriftyError, RuntimeError):
            then = self._foretell(keep_trunk(self.scene, self.method, self.found))
            if then.fits and then.time is not None and then.time.total is not None:
                yield Remedy(f"--cache still: {numbers.seconds(then.time.total)}", {"cache": "still"}, then.memory.peak,
                             then.time.total)

    def _settle(self, changes: dict[str, Any], found: Rehearsed) -> Iterator[Remedy]:
        """The remedy, with as many epochs as the time allows, if it allows one."""
        then = self._foretell(found)
        if "time" in then.over and then.time is not None and then.time.total is not None:
            allowed = (found.settings.epochs or 1.0) * (self.budget.time or 0.0) / then.time.total
            epochs = math.floor(allowed * 10) / 10
            while epochs >= 1 and not then.fits:  # an evaluation more or less may decide
                changes = {**changes, "epochs": epochs}
                then = self._foretell(replace(found, settings=replace(found.settings, epochs=epochs)))
                epochs = round(epochs - 0.1, 1)
        if changes and then.fits:
            total = then.time.total if then.time is not None else None
            told = ", ".join(_say(name, value) for name, value in changes.items())
            taken = numbers.size(then.memory.peak) + ("" if total is None else f", {numbers.seconds(total)}")
            yield Remedy(f"{told}: {taken}", changes, then.memory.peak, total)

    def _foretell(self, found: Rehearsed) -> Forecast:
        return foretell(found, self.method, self.scene.rows, self.machine, self.budget)


def _say(name: str, value: Any) -> str:
    return f"--{name}" if value is True else f"--{name} {value}" if isinstance(value, str) else f"--{name} {value:g}"

"""Which rows of which task make up which step. Like `Order`, a pure function of seed and step."""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch

from thrifty.core.errors import NoSuchSetting
from thrifty.data.mixing import annealed, capped, tempered
from thrifty.train.order import Order
from thrifty.train.predicting import length

Heat = float | str | None  # a temperature, "equal", or "annealed"


def arrange(examples: Sequence[dict[str, Any]], size: int, seed: int, temperature: Heat, cap: int | None,
            epochs: float) -> Order | Mixture:
    """The order of ``examples`` in steps of ``size`` rows: of one dataset, or of several if they say their ``task``."""
    lengths = [length(example) for example in examples]
    if "task" not in examples[0]:
        return Order(len(examples), size, seed, lengths)
    return Mixture([example["task"] for example in examples], size, seed, lengths, temperature, cap, epochs)


def rates_in(epoch: int, sizes: Mapping[str, int], temperature: Heat, cap: int | None, epochs: float) -> dict[str, float]:
    """The share of the steps that each task gets in an epoch, counted from 0."""
    if temperature == "annealed":
        whole = math.ceil(epochs)
        return annealed(sizes, min(epoch + 1, whole), whole, cap)
    return tempered(sizes, math.inf if temperature == "equal" else float(temperature or 1.0), cap)


def rates_of(sizes: Mapping[str, int], temperature: Heat, cap: int | None, epochs: float) -> dict[str, float]:
    """The share of the steps that each task gets in the mean over the epochs."""
    parts = [rates_in(epoch, sizes, temperature, cap, epochs) for epoch in range(math.ceil(epochs))]
    return {name: math.fsum(part[name] for part in parts) / len(parts) for name in sizes}


class Mixture:
    """Steps of one task each. An epoch is as many steps as min(rows, ``cap``) of all tasks make.

    Of the n steps of an epoch task t gets n r_t, rounded up or down by chance so that its share is r_t in the mean (systematic
    sampling), in an order by chance. The rate r_t is proportional to min(rows of t, ``cap``) ^ (1 / ``temperature``); annealed, it
    goes from proportional towards equal over the ``epochs`` (see `thrifty.data.mixing`). Within a task every row comes once before
    any comes again.
    """

    def __init__(self, tasks: Sequence[str], size: int, seed: int, lengths: Sequence[int], temperature: Heat = None,
                 cap: int | None = None, epochs: float = 1.0) -> None:
        self.places: dict[str, list[int]] = {}
        for place, name in enumerate(tasks):
            self.places.setdefault(name, []).append(place)
        self.sizes = {name: len(places) for name, places in self.places.items()}
        self.temperature, self.cap, self.total = temperature, cap, epochs
        self.per_epoch = math.ceil(sum(capped(self.sizes, cap).values()) / size)
        self.seed = seed
        self.orders = {name: Order(len(places), size, (seed + 1) * 7919 + number, [lengths[place] for place in places])
                       for number, (name, places) in enumerate(self.places.items())}
        self._drawn: list[list[str]] = []       # the tasks of each epoch's steps
        self._before: list[Counter[str]] = [Counter()]  # how often each task was drawn before each epoch

    def step(self, step: int) -> list[int]:
        """The rows of step ``step``, counted from 0."""
        name = self.task(step)
        epoch, place = divmod(step, self.per_epoch)
        earlier = self._before[epoch][name] + self._drawn[epoch][:place].count(name)
        return [self.places[name][row] for row in self.orders[name].step(earlier)]

    def task(self, step: int) -> str:
        """The task of step ``step``, counted from 0."""
        epoch, place = divmod(step, self.per_epoch)
        while len(self._drawn) <= epoch:
            self._drawn.append(self._draw(len(self._drawn)))
            self._before.append(self._before[-1] + Counter(self._drawn[-1]))
        return self._drawn[epoch][place]

    def epochs(self, step: int) -> float:
        """Epochs that ``step`` steps make."""
        return step / self.per_epoch

    def refuse_never(self, total: int) -> None:
        """Raises: NoSuchSetting if a task would not be drawn in any of ``total`` steps, naming it."""
        drawn = {self.task(step) for step in range(total)}
        for name, rate in rates_of(self.sizes, self.temperature, self.cap, self.total).items():
            if name not in drawn:
                raise NoSuchSetting(f"task {name!r} would come in none of the {total} steps, as its rate is {rate:.2g}: raise "
                                    "temperature or epochs, or set a cap")

    def _draw(self, epoch: int) -> list[str]:
        source = torch.Generator().manual_seed((self.seed + 1) * 1_000_003 + epoch)
        start, n = float(torch.rand(1, generator=source, dtype=torch.float64)), self.per_epoch
        rates = rates_in(epoch, self.sizes, self.temperature, self.cap, self.total)
        names, ends = list(rates), torch.tensor(list(accumulate(rates.values())), dtype=torch.float64)
        marks = (torch.arange(n, dtype=torch.float64) + start) / n
        found = torch.searchsorted(ends, marks, right=True).clamp(max=len(names) - 1).tolist()
        return [names[found[i]] for i in torch.randperm(n, generator=source).tolist()]

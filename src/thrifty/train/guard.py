"""Guard: keeps a training within its budget, by measuring and not by the prediction."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from thrifty.report import numbers
from thrifty.train.budget import Budget
from thrifty.train.held import Held

WATCHED = 2  # steps that are measured in any case: the optimiser's states are there from the second on


class Guard:
    """One for all trainings of a run. Time counts from the moment it is made.

    On an accelerator the allocator knows the most that was held. Elsewhere tensors are counted during a training's first steps, and
    during each later one that is larger than all before it. The memory of Python, libraries and data is none of the budget.
    """

    def __init__(self, budget: Budget, device: torch.device) -> None:
        self.budget, self.device = budget, device
        self.began, self.most = time.monotonic(), 0
        self.steps = self.largest = 0
        self.accelerated = budget.memory is not None and device.type == "cuda"
        if self.accelerated:
            torch.cuda.reset_peak_memory_stats(device)

    def begin(self) -> None:
        """Another training begins, whose steps are measured anew."""
        self.steps = self.largest = 0

    @contextmanager
    def watching(self, measure: Callable[[], int], tensors: Iterable[Tensor]) -> Iterator[None]:
        """One step on a batch whose size (tokens, or rows) ``measure`` gives, at the beginning of which ``tensors`` are held."""
        if self.budget.memory is None or self.accelerated:
            yield
            return
        size = measure()
        if self.steps >= WATCHED and size <= self.largest:
            yield
        else:
            with Held(self.device) as held:
                held.hold(tensors)
                yield
            self.most = max(self.most, held.most)
        self.steps, self.largest = self.steps + 1, max(self.largest, size)

    def exceeded(self) -> str | None:
        """What of the budget is used up, in words; None while it is kept."""
        memory, spent = self.budget.memory, time.monotonic() - self.began
        if self.accelerated:
            self.most = torch.cuda.max_memory_allocated(self.device)
        if memory is not None and self.most > memory:
            return f"a step held {numbers.size(self.most)} of tensors, and the budget is {numbers.size(memory)}"
        if self.budget.time is not None and spent > self.budget.time:
            return f"{numbers.seconds(spent)} have passed, and the budget is {numbers.seconds(self.budget.time)}"
        return None

"""Which rows make up which step. A pure function of seed and epoch, so a resumed run needs no memory of the past."""
from __future__ import annotations

import math

import torch


class Order:
    """Rows of every step: a new shuffle each epoch, cut into pieces of ``size`` rows; the last of an epoch may be smaller."""

    def __init__(self, rows: int, size: int, seed: int) -> None:
        self.rows, self.size, self.seed = rows, size, seed
        self.per_epoch = math.ceil(rows / size)
        self._epoch: tuple[int, list[int]] = (-1, [])

    def step(self, step: int) -> list[int]:
        """The rows of step ``step``, counted from 0."""
        epoch, place = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            source = torch.Generator().manual_seed((self.seed + 1) * 1_000_003 + epoch)
            self._epoch = epoch, torch.randperm(self.rows, generator=source).tolist()
        return self._epoch[1][place * self.size : (place + 1) * self.size]

    def epochs(self, step: int) -> float:
        """Epochs that ``step`` steps make."""
        return step / self.per_epoch


def deal(rows: list[int], batch: int, world: int, rank: int) -> list[list[int]]:
    """The batches of one process: ``rows`` in as few rounds as fit, each dealt out evenly to all processes.

    Every process gets the same number of batches; where rows are fewer than processes some are empty.
    """
    rounds = math.ceil(len(rows) / (batch * world))
    hands = rounds * world
    ends = [len(rows) * i // hands for i in range(hands + 1)]
    return [rows[ends[r * world + rank] : ends[r * world + rank + 1]] for r in range(rounds)]

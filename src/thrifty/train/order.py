"""Which rows make up which step. A pure function of seed and epoch, so a resumed run needs no memory of the past."""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch

POOL = 4  # steps whose rows are sorted by length together: less padding, and still another mixture in every epoch


class Order:
    """Rows of every step: a new shuffle each epoch, cut into pieces of ``size`` rows; one piece of an epoch may be smaller.

    ``lengths`` [rows] lets rows of like length go together: pools of ``POOL`` steps are sorted by length before they are cut,
    and the pieces are shuffled.
    """

    def __init__(self, rows: int, size: int, seed: int, lengths: Sequence[int] | None = None) -> None:
        self.rows, self.size, self.seed = rows, size, seed
        self.lengths = lengths if lengths is not None else [0] * rows
        self.per_epoch = math.ceil(rows / size)
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def step(self, step: int) -> list[int]:
        """The rows of step ``step``, counted from 0."""
        epoch, place = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = epoch, self._cut(torch.Generator().manual_seed((self.seed + 1) * 1_000_003 + epoch))
        return self._epoch[1][place]

    def epochs(self, step: int) -> float:
        """Epochs that ``step`` steps make."""
        return step / self.per_epoch

    def _cut(self, source: torch.Generator) -> list[list[int]]:
        rows = torch.randperm(self.rows, generator=source).tolist()
        pool = POOL * self.size
        rows = [row for start in range(0, self.rows, pool)
                for row in sorted(rows[start : start + pool], key=lambda row: self.lengths[row])]
        pieces = [rows[start : start + self.size] for start in range(0, self.rows, self.size)]
        return [pieces[i] for i in torch.randperm(len(pieces), generator=source).tolist()]


def deal(rows: list[int], batch: int, world: int, rank: int) -> list[list[int]]:
    """The batches of one process: ``rows`` in as few rounds as fit, each dealt out evenly to all processes.

    Every process gets the same number of batches; where rows are fewer than processes some are empty.
    """
    rounds = math.ceil(len(rows) / (batch * world))
    hands = rounds * world
    ends = [len(rows) * i // hands for i in range(hands + 1)]
    return [rows[ends[r * world + rank] : ends[r * world + rank + 1]] for r in range(rounds)]

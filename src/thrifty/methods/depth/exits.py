"""Exits inside a network: heads that may answer for a picture before the network ends, and blocks that then do not run.

Without gradients, in evaluation mode, pictures that are done leave the batch, so that no later block computes them. With
gradients, or when compiled, all exits see all pictures and the answers are chosen afterwards: the same ones.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...core import Edit, Site, register
from ...core.errors import DeadEdit
from ..features import pictures

NEVER = torch.finfo(torch.float32).max  # a threshold that no confidence reaches, and that a file can hold
PASSING = "what has left this batch"


class Passing:
    """What is known of a batch on its way: which ``rows`` are still in the network, what left it where, and what reached its
    ``end``, the last layer."""

    def __init__(self, batch: Tensor, leaving: bool) -> None:
        self.leaving, self.over, self.end = leaving, False, batch
        self.rows = torch.arange(len(batch), device=batch.device)
        self.said: list[tuple[int, Tensor, Tensor, Tensor]] = []  # exit, rows or confidences, logits, features


def confidence(logits: Tensor, measure: str) -> Tensor:
    """How sure logits [..., C] are, [...]: the largest probability, or minus the entropy; larger is surer."""
    p = logits.float().softmax(-1) if logits.dtype != torch.float64 else logits.softmax(-1)
    return p.amax(-1) if measure == "probability" else torch.special.entr(p).sum(-1).neg()


@register("exits-begin")
class Begin(Edit):
    """At the model: a new batch is on its way. ``listening``: nobody leaves, and all that is said is kept."""

    port = "call"

    def __init__(self, site: Site):
        super().__init__(site)
        self.listening = False

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the model, as they are. One with labels has a loss of its own, which needs all rows to the end."""
        _, x = pictures.find(args, kwargs)
        whole = self.training or self.listening or torch.is_grad_enabled() or kwargs.get("labels") is not None
        self.context.taps[PASSING] = Passing(x, not (whole or torch.compiler.is_compiling()))
        return args, kwargs


@register("exit")
class Exit(Edit):
    """Exit ``number`` (from 0), after a block: logits = f W' + b, with f [B, d] pooled from y, and W [classes, d].

    f is the mean over places of maps [B, d, h, w]; of tokens [B, N, d] it is the first if ``first``, the class token, else
    their mean. Who is at least as confident as the ``threshold`` leaves.
    """

    def __init__(self, site: Site, number: int, classes: int, first: bool, measure: str):
        super().__init__(site)
        self.number, self.first, self.measure = number, first, measure
        self.head = nn.Linear(site.dout, classes)
        self.threshold: Tensor
        self.register_buffer("threshold", torch.tensor(NEVER))

    def pool(self, y: Tensor) -> Tensor:
        """y [B, N, d] or [B, d, h, w] -> f [B, d]."""
        if y.dim() == 4:
            return y.mean((2, 3))
        return y[:, 0] if self.first else y.mean(1)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y of the rows that stay; one row, which means nothing, if none does."""
        passing: Passing | None = self.context.taps.get(PASSING)  # none where a block is computed again, for its gradients
        if passing is not None and (passing.over or passing.leaving and self.threshold >= NEVER):
            return y
        f = self.pool(y).to(self.head.weight.dtype)
        logits = self.head(f)
        sure = confidence(logits, self.measure)
        if passing is None or not passing.leaving:
            if passing is not None:
                passing.said.append((self.number, sure, logits, f))
            return y
        done = sure >= self.threshold
        passing.said.append((self.number, passing.rows[done], logits[done], f[done]))
        passing.rows, passing.over = passing.rows[~done], bool(done.all())
        return y[:1] if passing.over else y[~done]


@register("exit-skip")
class Skip(Edit):
    """Around what comes behind an exit: does not run when no picture is left, and gives on a row of zeros."""

    port = "around"

    def __init__(self, site: Site):
        super().__init__(site)
        self.width = site.dout

    def forward(self, run: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the site answers to the pictures that are left: [1, width, 1, 1] or [1, ..., width] if there are none."""
        passing: Passing | None = self.context.taps.get(PASSING)
        if passing is None or not passing.over:
            if passing is not None and self.site.role == "head":
                passing.end = x
            return run(x, *args, **kwargs)
        return x.new_zeros((1, self.width, 1, 1) if x.dim() == 4 else (*x.shape[:-1], self.width))


@register("exits-gather")
class Gather(Edit):
    """At the model's end: each picture's logits are those of the exit where it left, in the order of the batch.

    ``taken`` [B] says which that was in the last batch; the end of the network is the last exit.
    """

    def __init__(self, site: Site, exits: int):
        super().__init__(site)
        self.exits = exits
        self.taken: Tensor | None = None

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [rows that stayed, classes] -> [B, classes]; in training the network's own, y.

        Raises:
            DeadEdit: the edit where the model is entered is off.
        """
        if PASSING not in self.context.taps:
            raise DeadEdit("exits need the edit where the model is entered: switch all edits on or off together")
        passing: Passing = self.context.taps[PASSING]
        if begin_of(self.context.home).listening:
            passing.said.append((self.exits - 1, y, y, passing.end))
            return y
        del self.context.taps[PASSING]
        if self.training:
            return y
        if passing.leaving:
            return self._put_together(y, passing)
        taken = torch.full(y.shape[:1], self.exits - 1, device=y.device)
        exits = exits_of(self.context.home)
        for number, sure, logits, _ in reversed(passing.said):
            leaves = sure >= exits[number].threshold
            y = torch.where(leaves[:, None], logits.to(y.dtype), y)
            taken = torch.where(leaves, number, taken)
        self.taken = taken
        return y

    def _put_together(self, y: Tensor, passing: Passing) -> Tensor:
        left = [] if passing.over else [(self.exits - 1, passing.rows, y)]
        parts = [*((number, rows, logits) for number, rows, logits, _ in passing.said), *left]
        order = torch.cat([rows for _, rows, _ in parts]).argsort()
        self.taken = torch.cat([rows.new_full(rows.shape, number) for number, rows, _ in parts])[order]
        return torch.cat([logits.to(y.dtype) for _, _, logits in parts])[order]


def begin_of(at: Any) -> Begin:
    """The edit of an attachment where the model is entered."""
    return next(e for e in at.edits.values() if isinstance(e, Begin))


def exits_of(at: Any) -> list[Exit]:
    """The exits of an attachment, in order, without the end of the network."""
    return sorted((e for e in at.edits.values() if isinstance(e, Exit)), key=lambda e: e.number)


@contextmanager
def listening(at: Any) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """While it lasts, nobody leaves the network; afterwards the list holds (logits [B, C], features [B, d]) of every exit in
    the last batch, the end of the network too."""
    begin = begin_of(at)
    heard: list[tuple[Tensor, Tensor]] = []
    begin.listening = True
    try:
        yield heard
    finally:
        begin.listening = False
        passing = at.context.taps.pop(PASSING, None)
        heard += [(logits, f) for _, _, logits, f in passing.said] if passing is not None else []

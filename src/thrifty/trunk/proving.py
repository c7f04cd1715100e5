"""Proving: that states which are stored are what would be computed. Asked of the model itself, on a few rows."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from thrifty.core import Attachment
from thrifty.core.errors import Unfit
from thrifty.core.hooks import main
from thrifty.core.probe import run_once
from thrifty.trunk.capture import capture
from thrifty.trunk.cut import Cut, Place, when
from thrifty.trunk.packing import gap
from thrifty.trunk.replay import Replay
from thrifty.trunk.timeline import Timeline

CLOSE, COARSE = 1e-3, 5e-2  # how far apart, relative, two computations of the same may be: in float32, in 16 bit


def tolerance(autocast: bool, states: Mapping[Place, Tensor]) -> float:
    """What counts as rounding."""
    short = any(t.dtype in (torch.bfloat16, torch.float16) for t in states.values())
    return COARSE if autocast or short else CLOSE


def find_chance(timeline: Timeline, places: Sequence[Place], inputs: Mapping[str, Any]) -> str | None:
    """Why states are not the same in every step of a training, in words; None if they are.

    Modules that drop things by chance are known by name and share, as a small share may spare a few rows. Dropout that is no
    module, and statistics of batches, are found by running the model in training mode, twice.
    """
    model, last = timeline.model, max(when(timeline, place) for place in places)
    for path, call in timeline.calls.items():
        module = model.get_submodule(path)
        share = getattr(module, "p", None) or getattr(module, "drop_prob", None)
        if call.began < last and "drop" in type(module).__name__.lower() and isinstance(share, float) and share > 0:
            return f"dropout acts in the frozen part (at {path!r}, with {share:g})"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        still = capture(model, places, inputs)
        one, other = (capture(model, places, inputs, training=True) for _ in range(2))
    if any(not torch.equal(one[place], other[place]) for place in places):
        return "dropout, or something else that is drawn by chance, acts in the frozen part"
    if any(not gap(one[place], still[place]) <= CLOSE for place in places):
        return "the frozen part computes otherwise in training, by the statistics of the batch or the like"
    return None


def refuse_company(places: Sequence[Place], alone: Mapping[Place, Sequence[Tensor]], together: Mapping[Place, Sequence[Tensor]],
                   close: float) -> None:
    """Refuse states that depend on which other rows are in the batch: pieces of rows that were ``alone`` and ``together``.

    Raises:
        Unfit: they do.
    """
    for place in places:
        if not gap(torch.cat(list(together[place])), torch.cat(list(alone[place]))) <= close:
            raise Unfit(f"{place} depends on the other rows of the batch, or on padding")


def refuse_unlike(cut: Cut, timeline: Timeline, pictures: bool, inputs: Mapping[str, Any], states: Mapping[Place, Tensor],
                  mask: Tensor | None, close: float) -> None:
    """Refuse a model that answers otherwise when it is given ``states`` than when it computes them.

    An answer for every token counts where ``mask`` [B, T] says that there is one.

    Raises:
        Unfit: saying by how much.
    """
    model = timeline.model
    direct = main(run_once(model, dict(inputs)))
    with _given(cut, timeline, pictures, states, inputs):
        again = main(run_once(model, dict(inputs)))
    if mask is not None and direct.shape[:2] == mask.shape and again.shape == direct.shape:
        again, direct = again[mask.bool()], direct[mask.bool()]
    apart = gap(again, direct) if again.shape == direct.shape else float("inf")
    if not apart <= close:
        raise Unfit(f"given the states of its frozen part, {type(model).__name__} answers otherwise than when it computes them "
                    f"(by {apart:.2g}, relative): something between its blocks reads more than a block gives")


def refuse_questions(at: Attachment, cut: Cut, timeline: Timeline, pictures: bool, task: Any,
                     asked: tuple[dict[str, Any], Mapping[str, Any]], states: Mapping[Place, Tensor], close: float) -> None:
    """Refuse a method or task that asks the model about more than the rows of a batch, or looks at pictures on its own.

    ``asked`` are a batch, and what of it the model is given, to learn from it and to judge it.

    Raises:
        Unfit: it does.
    """
    batch, inputs = asked
    blank = {key: torch.zeros_like(value) if key in inputs else value for key, value in batch.items()} if pictures else batch
    modes = {module: module.training for module in at.model.modules()}
    losses = []
    try:
        with torch.no_grad(), torch.random.fork_rng():
            for seen in (batch, blank):
                torch.manual_seed(0)
                with _given(cut, timeline, pictures, states, seen):
                    task.judge(at.model.eval(), seen)
                    if at.method is not None:
                        losses.append(at.method.loss(at, task, at.model.train(), seen)[0].float().reshape(1))
    finally:
        for module, mode in modes.items():
            module.training = mode
    if losses and not gap(losses[1], losses[0]) <= close:
        raise Unfit("what is learned from depends on more of the pictures than the states of the frozen part")


@contextlib.contextmanager
def _given(cut: Cut, timeline: Timeline, pictures: bool, states: Mapping[Place, Tensor],
           batch: Mapping[str, Any]) -> Iterator[None]:
    replay = Replay(cut, timeline, pictures)
    try:
        with replay.giving(states, batch):
            yield
    except Unfit:
        raise
    except Exception as error:
        kind, why = type(timeline.model).__name__, f"{type(error).__name__}: {error}"
        raise Unfit(f"{kind} does not run on the states of its frozen part: {why}") from error
    finally:
        replay.remove()

"""Proving: that states which are stored are what would be computed. Asked of the model itself, on a few rows."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from thrifty.core.errors import Unfit
from thrifty.core.hooks import main
from thrifty.core.probe import run_once
from thrifty.trunk.capture import capture
from thrifty.trunk.cut import Cut, Place
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

    Dropout that is no module, and batch statistics, are found too: the model runs in training mode, twice.
    """
    model = timeline.model
    with torch.random.fork_rng():
        torch.manual_seed(0)
        still = capture(model, places, inputs)
        one, other = (capture(model, places, inputs, training=True) for _ in range(2))
    if all(torch.equal(one[place], other[place]) for place in places):
        if all(gap(one[place], still[place]) <= CLOSE for place in places):
            return None
        return "the frozen part computes otherwise in training, by the statistics of the batch or the like"
    last = max(timeline.ended(place.path) for place in places)
    for path, call in timeline.calls.items():
        module = model.get_submodule(path)
        share = getattr(module, "p", None) or getattr(module, "drop_prob", None)
        if call.began < last and "drop" in type(module).__name__.lower() and isinstance(share, float):
            return f"dropout acts in the frozen part (at {path!r}, with {share:g})"
    return "dropout, or something else that is drawn by chance, acts in the frozen part"


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
    replay = Replay(cut, timeline, pictures)
    try:
        with replay.giving(states, inputs):
            again = main(run_once(model, dict(inputs)))
    except Unfit:
        raise
    except Exception as error:
        raise Unfit(f"{type(model).__name__} does not run on the states of its frozen part: {type(error).__name__}: {error}") from error
    finally:
        replay.remove()
    if mask is not None and direct.shape[:2] == mask.shape and again.shape == direct.shape:
        again, direct = again[mask.bool()], direct[mask.bool()]
    apart = gap(again, direct) if again.shape == direct.shape else float("inf")
    if not apart <= close:
        raise Unfit(f"given the states of its frozen part, {type(model).__name__} answers otherwise than when it computes them "
                    f"(by {apart:.2g}, relative): something between its blocks reads more than a block gives")

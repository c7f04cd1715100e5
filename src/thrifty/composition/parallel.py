"""Parallel parts: the batch is copied once for each, and what lies below the first of their places is computed once."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core import Attachment, Edit, Site, register
from ..core.errors import Unfit
from ..core.probe import Example, guess_example, run_once


@register("copies")
class Copies(Edit):
    """At the model: every tensor [batch, ...] is repeated ``copies`` times, and the rows of copy i belong to part i."""

    port = "call"

    def __init__(self, site: Site, copies: int):
        super().__init__(site)
        self.copies = copies

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with ``copies`` times as many rows.

        Raises:
            Unfit: the model continues a text from a cache, whose rows would be copied again at every step.
        """
        if kwargs.get("past_key_values") is not None:
            raise Unfit("Parallel answers a batch once; to generate, give each row its part (Rows)")
        first = next(t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.dim())
        rows = len(first)
        self.context.task = torch.arange(self.copies, device=first.device).repeat_interleave(rows)

        def copy(value: Any) -> Any:
            return torch.cat([value] * self.copies) if isinstance(value, Tensor) and value.dim() and len(value) == rows else value

        return tuple(map(copy, args)), {name: copy(value) for name, value in kwargs.items()}


@register("once")
class Once(Edit):
    """At a block where all copies are still alike: only the first of them goes in."""

    port = "call"

    def __init__(self, site: Site, copies: int):
        super().__init__(site)
        self.copies = copies

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with the rows of the first copy."""
        first = next(t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.dim())
        rows = len(first)

        def cut(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(cut, value))
            copied = isinstance(value, Tensor) and value.dim() and len(value) == rows
            return value[: rows // self.copies] if copied else value

        return cut(tuple(args)), {name: cut(value) for name, value in kwargs.items()}


@register("again")
class Again(Edit):
    """At the same block: what came out, for every copy."""

    def __init__(self, site: Site, copies: int):
        super().__init__(site)
        self.copies = copies

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """y [batch, ...] -> [copies x batch, ...]."""
        return torch.cat([y] * self.copies)


def copy_rows(at: Attachment, copies: int, example: Example | None) -> None:
    """Put the copying at the model, and the sharing at the blocks that run before any part acts."""
    below = blocks_below(at, example if example is not None else guess_example(at.model))
    at.put(at.sites("model")[0], Copies, copies=copies)
    for block in below:
        at.put(block, Once, copies=copies)
        at.put(block, Again, copies=copies)


def blocks_below(at: Attachment, example: Example | None) -> list[Site]:
    """Blocks that are done before the first edit is reached; none where the model cannot be run once to see."""
    acting = {row.path for row in at.plan}
    try:
        blocks = [site for site in at.sites("block") if site.path not in acting]
    except LookupError:
        return []
    if example is None:
        return []
    order: list[str] = []

    def note(path: str) -> Any:
        def seen(*_: Any) -> None:
            order.append(path)
        return seen

    handles = [b.module.register_forward_hook(note(b.path)) for b in blocks]
    handles += [at.model.get_submodule(p).register_forward_pre_hook(note("")) for p in acting]
    try:
        with at.disabled():
            run_once(at.model, example)
    except (TypeError, ValueError, RuntimeError, IndexError):  # a made-up example that does not run proves nothing
        return []
    finally:
        for handle in handles:
            handle.remove()
    done = order[: order.index("")] if "" in order else []
    return [block for block in blocks if block.path in done]

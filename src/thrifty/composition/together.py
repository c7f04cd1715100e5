"""Many edits of one shape at one place, run at once: every row of a batch has parameters of its own.

A loop over adapters takes their rows out of the batch and puts them back, one small product after the other. Here the parameters of
all are stacked, those of each row are looked up, and the edit meets all rows at once, so that its products become batched ones.
"""
from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

Groups = list[tuple[list[int], "Together | None"]]


class Together:
    """``edits`` of one kind, with the same numbers, as one. It keeps a copy of what they hold while nothing of it trains.

    An edit takes part if it is ``rowwise`` (see `thrifty.core.Edit`).
    """

    def __init__(self, edits: list[Any]):
        self.edits = edits
        self.homes = [list(_homes(edit)) for edit in edits]
        self.known: list[Any] = []
        self.owners: dict[str, list[Tensor]] = {}  # held, so that what is known of them is known of no others
        self.stacked: dict[str, Tensor] = {}
        self.chosen: dict[str, Tensor] = {}
        self.place: Tensor | None = None

    def __call__(self, place: Tensor, *given: Tensor) -> Any:
        """``place`` [B] says whose tensors each row of ``given`` ([B, ...] each) meets; the edit's own answer, row by row."""
        return self.edits[0].by_row(self.choose(place), *given)

    def all(self, place: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        """The same as a tuple, whatever the edit gives."""
        out = self(place, *given)
        return out if isinstance(out, tuple) else (out,)

    def read(self, y: Tensor, x: Tensor) -> Tensor:
        """What the edits read, which is the same for all: by each of them, as reading may empty a tap."""
        first, *_ = [edit.read(y, x) for edit in self.edits]
        return cast(Tensor, first)

    def choose(self, place: Tensor) -> dict[str, Tensor]:
        """Every row's own tensors, name -> [B, ...]; the same ones again while rows are the same and nothing trains or changes."""
        every = {homes[0][0]: [home[name] for _, home, name in homes] for homes in zip(*self.homes, strict=True)}
        if torch.is_grad_enabled() and any(tensors[0].requires_grad for tensors in every.values()):
            return {name: torch.stack(tensors)[place] for name, tensors in every.items()}
        seen = [(id(t), t.data_ptr(), t._version) for tensors in every.values() for t in tensors]
        if seen != self.known:
            self.stacked = {name: torch.stack([t.detach() for t in tensors]) for name, tensors in every.items()}
            self.known, self.owners, self.place = seen, every, None
        if place is not self.place:
            self.place, self.chosen = place, {name: tensor[place] for name, tensor in self.stacked.items()}
        return self.chosen


def _homes(edit: nn.Module) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Name, and where it is found, of everything that an edit holds: looked up anew each time, as it may be exchanged."""
    for path, module in edit.named_modules():
        for home in (module._parameters, module._buffers):
            for name, tensor in home.items():
                if tensor is not None:
                    yield f"{path}.{name}" if path else name, home, name


def groups(parts: list[tuple[list[Any], Any]]) -> Groups:
    """Parts that can run at once, as their numbers; with None those that go by themselves. ``parts`` are edits, and what the plan
    says of them."""
    alike: dict[str, list[int]] = {}
    found: Groups = []
    for number, (edits, said) in enumerate(parts):
        if len(edits) == 1 and edits[0].rowwise:
            alike.setdefault(json.dumps(said, sort_keys=True), []).append(number)
        else:
            found.append(([number], None))
    for numbers in alike.values():
        found.append((numbers, Together([parts[n][0][0] for n in numbers]) if len(numbers) > 1 else None))
    return found


def deal(shares: Groups, which: Tensor) -> Iterator[tuple[list[int], Together | None, Tensor, Tensor]]:
    """The batch, whose rows belong to the parts ``which`` [B], cut into rows whose parts run at once: their parts, how they do, the
    rows, and the place of each row's part among those."""
    for numbers, together in shares:
        own = torch.full((1 + max(max(n) for n, _ in shares),), -1, device=which.device)
        own[numbers] = torch.arange(len(numbers), device=which.device)
        rows = (own[which] >= 0).nonzero().squeeze(1)
        if len(rows):
            yield numbers, together, rows, own[which[rows]]

"""Rebuild: a plan's rows as edits on a model, after their numbers were compared with the tensors that the file holds."""
from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Attachment, Row, base
from ..core.errors import BrokenArtifact, ThriftyError, nearest
from ..core.site import at_path
from ..core.sparse import mask_at
from .naming import named

SMALL = 4096  # numbers up to this are believed; larger ones need a tensor in the file that is as large
DRAWN = 1 << 24  # so many entries may be drawn anew beside those in the file; more only for a base that has as many
TYPES: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str}
REFUSALS = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RuntimeError)
State = dict[str, Tensor]


def rebuild(at: Attachment, rows: list[Row], data: dict[str, Any], state: State) -> None:
    """Put on ``at`` what adapter.json says in ``rows`` and ``data``; ``state`` holds the file's tensors.

    Raises:
        BrokenArtifact: an edit is unknown, takes no such numbers, or would need other tensors than the file holds.
        NoSuchSite: the model has no such module.
    """
    if data["shared"]:
        kind, numbers = data["shared"]
        held = _held(state, "shared:")
        module = named(kind)
        widest = max((n for p in at.model.parameters() for n in p.shape), default=0)  # what layers share is as wide as they are
        _refuse_unfit(lambda: module(**numbers), module, numbers, kind, held, at.model, widest)
        _build(lambda: at.share(module, **numbers), kind)
    for row in rows:
        _put(at, row, _held(state, f"edit:{row.key}:"))
    buffers = base.buffers(at.model)
    for name, about in data["trained"].items():
        if about["buffer"]:
            if name not in buffers:
                raise BrokenArtifact(f"{type(at.model).__name__} has no buffer {name!r}." + nearest(name, buffers))
            at.train_buffers([name])
        else:
            at.train(name, _mask(at, name, state) if about["masked"] else None, wildcard=about["wildcard"])


def _put(at: Attachment, row: Row, held: State) -> None:
    site = at_path(at.model, row.path, row.role, row.part, row.depth, row.stack, at.seen)
    if row.part is not None:
        width, rest = divmod(replace(site, part=None).dout, row.part.groups)
        if rest or row.part.hi > width:
            raise BrokenArtifact(f"{row.key!r} is about columns {row.part.lo} to {row.part.hi}, {row.path!r} has {width}")
    kind = named(row.edit)
    _refuse_unfit(lambda: kind(site, **row.numbers), kind, row.numbers, row.key, held, at.model)
    _build(lambda: at.put(site, kind, **row.numbers), row.key)
    made = at.plan[-1].key
    if made.rstrip("+") == row.key.rstrip("+") and row.key not in at.edits:  # edits of its kind were taken away before it
        at.edits[row.key], at.slots[row.key], at.plan[-1].key = at.edits.pop(made), at.slots.pop(made), row.key
    if at.plan[-1].key != row.key:
        raise BrokenArtifact(f"the plan's keys are not those that its rows give: {row.key!r} should be {at.plan[-1].key!r}")


def _refuse_unfit(make: Callable[[], Any], kind: Any, numbers: dict[str, Any], key: str, held: State, model: nn.Module,
                  wide: int = 0) -> None:
    """Compare with the tensors in the file, before memory is taken for numbers that the plan only claims."""
    wanted = {n: p for n, p in inspect.signature(kind.__init__).parameters.items() if n not in ("self", "site")}
    for name, value in numbers.items():
        if name not in wanted:
            raise BrokenArtifact(f"{key!r}: {kind.__name__} takes no {name!r}." + nearest(name, wanted))
        of = TYPES.get(str(wanted[name].annotation))
        if of is not None and (not isinstance(value, of) or isinstance(value, bool) and of is not bool):
            raise BrokenArtifact(f"{key!r}: {name} = {value!r} should be of type {wanted[name].annotation}")
    for name, parameter in wanted.items():
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD and name not in numbers:
            raise BrokenArtifact(f"{key!r}: {kind.__name__} needs {name!r}")
    most = max([SMALL, wide, *(t.numel() for t in held.values())])
    if giants := [n for n in _integers(numbers) if abs(n) > most]:
        raise BrokenArtifact(f"{key!r}: {giants[0]} is out of all proportion to the {len(held)} tensors that the file holds "
                             "for it")
    try:
        with torch.device("meta"):
            made = make()
            shapes = {n: tuple(t.shape) for n, t in made.state_dict().items()}
    except REFUSALS as error:
        if isinstance(error, ThriftyError):
            raise
        return  # what cannot be built without numbers is judged when it is built with them; their bound stands
    drawn = sum(b.numel() for n, b in made.named_buffers() if n not in shapes)
    if drawn > max(DRAWN, sum(p.numel() for _, p in base.parameters(model))):
        raise BrokenArtifact(f"{key!r}: {drawn:,} numbers to draw are out of all proportion to the model")
    for name, shape in shapes.items():
        if name not in held or tuple(held[name].shape) != shape:
            there = "missing" if name not in held else f"of shape {tuple(held[name].shape)}"
            raise BrokenArtifact(f"{key!r}: its numbers ask for {name!r} of shape {shape}, in the file it is {there}")


def _build(make: Callable[[], Any], key: str) -> Any:
    try:
        return make()
    except REFUSALS as error:
        if isinstance(error, ThriftyError):
            raise
        raise BrokenArtifact(f"{key!r} cannot be built from the numbers in the file: {error}") from None


def _mask(at: Attachment, name: str, state: State) -> Tensor:
    where = state.get(f"entries:{name}")
    parameters = dict(at.model.named_parameters(remove_duplicate=False))
    if where is None or name not in parameters:
        raise BrokenArtifact(f"the file lists no entries that fit the parameter {name!r} of {type(at.model).__name__}")
    return mask_at(where, parameters[name], name)


def _held(state: State, prefix: str) -> State:
    return {n[len(prefix):]: t for n, t in state.items() if n.startswith(prefix)}


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    if isinstance(value, dict):
        value = [inner for name, inner in value.items() if name != "seed"]  # which is no size
    for inner in value if isinstance(value, list) else ():
        yield from _integers(inner)

"""The parts of a composition before they are put together: what a saved adapter, or a new method, would put on the model."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..artifact.fingerprint import stack_of
from ..artifact.load import read, refuse_base
from ..core import Attachment, Method, Row
from ..core.errors import CannotCombine
from ..core.probe import Example, Seen
from .algebra import Named

SCRATCH = "thrifty-part"


@dataclass
class Part:
    """One adapter: rows of its plan, its tensors by the names of its own file, and which base parameters it trained in place.

    ``behind`` are the edits and parameters that it has at a head which this model does not have, as the task is another one.
    """

    name: str
    rows: list[Row]
    state: dict[str, Tensor]
    shared: tuple[str, dict[str, Any]] | None
    trained: list[str]
    new: bool
    about: dict[str, Any]
    frozen: bool = False
    behind: list[str] = field(default_factory=list)


def gather(model: nn.Module, leaves: list[Named], example: Example | None, seen: Seen) -> list[Part]:
    """Every leaf as a part. Saved ones are verified as `thrifty.load` verifies them.

    Raises:
        BrokenArtifact, WrongBase: naming the folder.
        CannotCombine: a part has sparse masks or batch statistics, which belong to it alone.
    """
    found = []
    for leaf in leaves:
        source = leaf.source
        made = (_from_method(model, leaf.name, source, example) if isinstance(source, Method) else
                from_folder(model, leaf.name, Path(source)))
        for row in made.rows:
            seen.shapes.setdefault(row.path, {}).update(row.seen)
        found.append(made)
    return found


def from_folder(model: nn.Module, name: str, folder: Path) -> Part:
    """A saved adapter, verified as `thrifty.load` verifies it, but that its base may have had another head.

    Raises:
        BrokenArtifact, WrongBase: naming what is wrong.
        CannotCombine: it has sparse masks or batch statistics.
    """
    data, rows, state = read(folder)
    refuse_base(model, data, head="any")
    special = [n for n, about in data["trained"].items() if about["masked"] or about["buffer"]]
    if special:
        raise CannotCombine(f"{folder}: {special[0]!r} is trained in part, or is a running statistic; it can only be used alone")
    shared = tuple(data["shared"]) if data["shared"] else None
    there = {*model._modules, *model._parameters}
    absent = [row for row in rows if row.path and row.path.partition(".")[0] not in there and stack_of(row.path) is None]
    headless = [n for n in data["trained"] if n.partition(".")[0] not in there]
    return Part(name, [row for row in rows if row.on and row not in absent], state, shared,
                [n for n in data["trained"] if n not in headless], False, data["about"],
                behind=[*(row.key for row in absent), *headless])


def _from_method(model: nn.Module, name: str, method: Method, example: Example | None) -> Part:
    """What the method would put there, with the values that it starts from."""
    method.check()
    if method.multitask:
        raise CannotCombine(f"{method.name} tells tasks apart, and a part of a composition is not given their names: attach and "
                            "train it by itself, and compose the saved adapter")
    at = Attachment(model, SCRATCH, seen=Seen(model, example))
    try:
        at.method = method
        method.attach(at)
        if at.masks or any(n not in dict(model.named_parameters()) for n in at.base):
            raise CannotCombine(f"{method.name} trains parts of weights or running statistics, so it can only be used alone")
        return Part(name, list(at.plan), at.state(), at.shared_as, list(at.base), True, {})
    finally:
        at.detach()


"""Load: an adapter folder onto a model, after everything in it has been checked. No code is run, nothing named is imported."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Attachment, Method, Row
from ..core.attaching import finish
from ..core.errors import BrokenArtifact, ThriftyError
from ..core.probe import Example, Seen
from .files import ABOUT, TENSORS, adapter_folder, read_header, read_json, sha256
from .fingerprint import refuse_other, refuse_other_trunk, unread
from .rebuild import rebuild
from .save import raw
from .schema import check as check_schema


def inspect(path: str | Path) -> dict[str, Any]:
    """What adapter.json says, verified against its hash and against the header of the tensors. Reads no tensor data.

    Raises:
        BrokenArtifact: anything is missing, extra, altered, truncated or oversized; the message names it.
    """
    folder = adapter_folder(path)
    data = read_json(folder / ABOUT)
    check_schema(data, folder / ABOUT)
    header = read_header(folder / TENSORS)
    if header.pop("__metadata__", None) != {"format": "pt"}:
        raise BrokenArtifact(f"{folder / TENSORS}: its metadata was changed")
    for name in header:
        if name not in data["tensors"]:
            raise BrokenArtifact(f"{folder / TENSORS} holds a tensor {name!r} of which {ABOUT} says nothing")
    for name, about in data["tensors"].items():
        if name not in header:
            raise BrokenArtifact(f"{folder / TENSORS} lacks the tensor {name!r}")
        here, said = ([row.get("shape"), row.get("dtype")] for row in (header[name], about))
        if here != said:
            raise BrokenArtifact(f"{folder / TENSORS}: {name!r} is {here[1]}{here[0]}, {ABOUT} says {said[1]}{said[0]}")
    return data


def refuse_base(model: nn.Module, data: dict[str, Any], head: str = "same") -> str:
    """Compare ``model`` with the base that a folder was trained on, given what ``read`` says of it; returns how they match.

    ``head`` "any" compares what the two have in common, the trunk, under whatever head.

    Raises:
        WrongBase: naming the tensors that differ.
    """
    own = [n for n, about in data["trained"].items() if not about["masked"]]
    compare = refuse_other if head == "same" else refuse_other_trunk
    return compare(model, data["base"], [*own, *unread(model, map(Row.read, data["plan"]))])


def load(model: nn.Module, path: str | Path, name: str = "default", *, base: str = "same", example: Example | None = None,
         check: bool = True) -> Attachment:
    """Rebuild a saved adapter on ``model`` and return the handle. Runs no method and needs none of its data.

    Args:
        path: the adapter's folder, or that of a run of `thrifty.tune`.
        base: "same" refuses a model whose weights are not those the adapter was trained on (a half-precision copy of them
            counts as the same); "any" goes on.
        example: as for ``attach``.
        check: run the model once in search of edits that it never reaches.

    Raises:
        BrokenArtifact: the folder is not whole; nothing has been attached then.
        WrongBase: another model, with the tensors that differ.
        NoSuchSite, DeadEdit, ThriftyError: the model has no such place, never calls it, or the name is taken.
    """
    if base not in ("same", "any"):
        raise ThriftyError(f"base= is 'same' or 'any', not {base!r}")
    data, rows, state = read(path)
    match = refuse_base(model, data) if base == "same" else "not compared"
    at = Attachment(model, name, seen=Seen(model, example, {row.path: row.seen for row in rows}), tied="leave")
    try:
        with torch.random.fork_rng(devices=[]):  # initial values that the file's take the place of
            rebuild(at, rows, data, state)
        at.load_state(state)
        at.method, at.seed, at.about = _method(data), data["seed"], {**data["about"]}
        finish(at, example, check)
        for row in rows:
            if not row.on:
                at.disable(lambda r, key=row.key: r.key == key)  # type: ignore[misc]
    except BaseException:
        at.detach()
        raise
    at.start = {}  # what a file held may be saved again as it is
    at.base_match = match
    return at


def read(path: str | Path) -> tuple[dict[str, Any], list[Row], dict[str, Tensor]]:
    """What adapter.json says, the rows of its plan, and the tensors; all of it verified.

    Raises:
        BrokenArtifact: the folder is not whole.
    """
    folder = adapter_folder(path)
    data = inspect(folder)
    return data, check_schema(data, folder / ABOUT), _read_tensors(folder, data)


def _read_tensors(folder: Path, data: dict[str, Any]) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    where = folder / TENSORS
    state: dict[str, Tensor] = {}
    try:
        with safe_open(where, "pt") as file:
            for name, about in data["tensors"].items():
                state[name] = file.get_tensor(name)
                if sha256(raw(state[name])) != about["sha256"]:
                    raise BrokenArtifact(f"{where}: the contents of {name!r} do not match their hash (a flipped bit, or "
                                         "another file)")
                if state[name].is_floating_point() and not torch.isfinite(state[name]).all():
                    raise BrokenArtifact(f"{where}: {name!r} holds NaN or infinity")
    except SafetensorError as error:
        raise BrokenArtifact(f"{where} is not whole: {error}") from None
    return state


def _method(data: dict[str, Any]) -> Any:
    if data["method"] is None:
        return None
    made = _find(data["method"]["name"]).make(**data["method"]["settings"])
    made.check()
    return made


def _find(name: str) -> type[Method]:
    """A method of the catalogue, or one that a user has defined by now: nothing is imported by a name found in a file."""
    from ..methods import CATALOGUE, find

    kinds: list[type[Method]] = [Method]
    for kind in kinds:
        kinds += kind.__subclasses__()
    own = {kind.name: kind for kind in kinds if kind.name and kind.name not in CATALOGUE}
    return own[name] if name in own else find(name)

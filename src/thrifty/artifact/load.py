"""Load: an adapter folder onto a model, after everything in it has been checked. No code is run, nothing named is imported."""
from __future__ import annotations

import inspect as signatures
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Attachment, Row, registered
from ..core.attaching import finish
from ..core.errors import BrokenArtifact, ThriftyError, nearest
from ..core.probe import Example, Seen
from ..core.site import at_path
from .files import ABOUT, TENSORS, canonical, read_header, read_json, sha256
from .fingerprint import refuse_other
from .save import FORMAT, VERSION, raw

KEYS: dict[str, Any] = {
    "format": str, "version": int, "thrifty": str, "method": (dict, type(None)), "seed": (int, type(None)), "plan": list,
    "shared": (list, type(None)), "trained": dict, "base": dict, "tensors": dict, "about": dict, "hash": str,
}
MOST_NUMBER = 1 << 24


def inspect(path: str | Path) -> dict[str, Any]:
    """What adapter.json says, verified against its hash and against the header of the tensors. Reads no tensor data.

    Raises:
        BrokenArtifact: anything is missing, extra, altered, truncated or oversized; the message names it.
    """
    folder = Path(path)
    data = read_json(folder / ABOUT)
    if data.get("format") != FORMAT:
        raise BrokenArtifact(f"{folder / ABOUT} is not an adapter of this library (format {data.get('format')!r})")
    if data.get("version") != VERSION:
        raise BrokenArtifact(f"{folder} has schema version {data.get('version')!r}; this thrifty reads version {VERSION}")
    for key in data:
        if key not in KEYS:
            raise BrokenArtifact(f"{folder / ABOUT}: unknown key {key!r}." + nearest(key, KEYS))
    for key, kind in KEYS.items():
        if not isinstance(data.get(key, ...), kind):
            raise BrokenArtifact(f"{folder / ABOUT}: {key!r} is {'missing' if key not in data else 'of the wrong type'}")
    if sha256(canonical({k: v for k, v in data.items() if k != "hash"})) != data["hash"]:
        raise BrokenArtifact(f"{folder / ABOUT} was changed after it was saved: its contents do not match its hash")
    header = read_header(folder / TENSORS)
    for name in header:
        if name not in data["tensors"]:
            raise BrokenArtifact(f"{folder / TENSORS} holds a tensor {name!r} of which {ABOUT} says nothing")
    for name, about in data["tensors"].items():
        if name not in header:
            raise BrokenArtifact(f"{folder / TENSORS} lacks the tensor {name!r}")
        if [header[name].get("shape"), header[name].get("dtype")] != [about.get("shape"), about.get("dtype")]:
            raise BrokenArtifact(f"{name!r} is {header[name].get('dtype')}{header[name].get('shape')}, {ABOUT} says "
                                 f"{about.get('dtype')}{about.get('shape')}")
    return data


def load(model: nn.Module, path: str | Path, name: str = "default", *, base: str = "same", example: Example | None = None,
         check: bool = True) -> Attachment:
    """Rebuild a saved adapter on ``model`` and return the handle. Runs no method and needs none of its data.

    Args:
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
    folder = Path(path)
    data = inspect(folder)
    state = _read_tensors(folder, data)
    rows = [Row.read(row) for row in data["plan"]]
    replaced = [n for n, about in data["trained"].items() if not about.get("masked")]
    match = refuse_other(model, data["base"], replaced) if base == "same" else "not compared"
    at = Attachment(model, name, seen=Seen(model, example, {row.path: row.seen for row in rows}), tied="leave")
    try:
        _rebuild(at, rows, data, state)
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


def _rebuild(at: Attachment, rows: list[Row], data: dict[str, Any], state: dict[str, Tensor]) -> None:
    if data["shared"]:
        kind, numbers = _pair(data["shared"])
        at.share(_checked(registered(kind), None, numbers, kind), **numbers)
    for row in rows:
        site = at_path(at.model, row.path, row.role, row.part, row.depth, row.stack, at.seen)
        _checked(registered(row.edit), site, row.numbers, row.key)
        prefix = f"edit:{row.key}:"
        _refuse_giant(registered(row.edit), site, row, {n[len(prefix):]: t for n, t in state.items() if n.startswith(prefix)})
        at.put(site, registered(row.edit), **row.numbers)
        if at.plan[-1].key != row.key:
            raise BrokenArtifact(f"the plan's keys are not those that its rows give: {row.key!r} should be {at.plan[-1].key!r}")
    for name, about in data["trained"].items():
        if about.get("buffer"):
            if name not in dict(at.model.named_buffers()):
                raise BrokenArtifact(f"the model has no buffer {name!r}")
            at.train_buffers([name])
        else:
            at.train(name, state.get(f"mask:{name}") if about.get("masked") else None, wildcard=bool(about.get("wildcard")))


def _checked(kind: Any, site: Any, numbers: dict[str, Any], where: str) -> Any:
    """``kind``, if its constructor takes these numbers."""
    wanted = signatures.signature(kind.__init__).parameters
    for name, value in numbers.items():
        if name not in wanted:
            known = [w for w in wanted if w not in ("self", "site")]
            raise BrokenArtifact(f"{where!r}: {kind.__name__} takes no {name!r}." + nearest(name, known))
        if isinstance(value, int) and abs(value) > MOST_NUMBER:
            raise BrokenArtifact(f"{where!r}: {name} = {value} is out of all proportion")
    for name, parameter in wanted.items():
        if parameter.default is parameter.empty and name not in ("self", "site") and name not in numbers \
                and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            raise BrokenArtifact(f"{where!r}: {kind.__name__} needs {name!r}")
    return kind


def _refuse_giant(kind: Any, site: Any, row: Row, held: dict[str, Tensor]) -> None:
    """Compare shapes on the meta device, before memory is taken for numbers that the file only claims."""
    try:
        with torch.device("meta"):
            shapes = {n: tuple(t.shape) for n, t in kind(site, **row.numbers).state_dict().items()}
    except (RuntimeError, NotImplementedError):
        return  # initial values that need real numbers; the bound on the numbers themselves stands
    for name, shape in shapes.items():
        if name not in held or tuple(held[name].shape) != shape:
            there = "missing" if name not in held else f"of shape {tuple(held[name].shape)}"
            raise BrokenArtifact(f"{row.key!r}: its numbers ask for {name!r} of shape {shape}, in the file it is {there}")


def _read_tensors(folder: Path, data: dict[str, Any]) -> dict[str, Tensor]:
    from safetensors import safe_open

    state: dict[str, Tensor] = {}
    with safe_open(folder / TENSORS, "pt") as file:
        for name, about in data["tensors"].items():
            state[name] = file.get_tensor(name)
            if sha256(raw(state[name])) != about.get("sha256"):
                raise BrokenArtifact(f"{folder / TENSORS}: the contents of {name!r} do not match their hash (a flipped bit, or "
                                     "another file)")
            if state[name].is_floating_point() and not torch.isfinite(state[name]).all():
                raise BrokenArtifact(f"{folder / TENSORS}: {name!r} holds NaN or infinity")
    return state


def _pair(shared: list[Any]) -> tuple[str, dict[str, Any]]:
    if len(shared) != 2 or not isinstance(shared[0], str) or not isinstance(shared[1], dict):
        raise BrokenArtifact("'shared' is a name and its numbers")
    return shared[0], shared[1]


def _method(data: dict[str, Any]) -> Any:
    from ..methods import find

    if data["method"] is None:
        return None
    try:
        return find(data["method"]["name"]).make(**data["method"]["settings"])
    except (KeyError, TypeError) as error:
        raise BrokenArtifact(f"'method' is not a name and its settings: {error}") from None

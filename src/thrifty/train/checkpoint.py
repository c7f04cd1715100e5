"""Checkpoints: a training as it stands between two steps, in safetensors and JSON, readable after a kill at any moment.

The folder holds ``state.json`` and the tensor files that it names with their hashes. New tensor files are written beside the
old ones; renaming a new ``state.json`` over the old one is the single moment at which the new checkpoint becomes the valid one.
"""
from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thrifty.core import Attachment
from thrifty.core.errors import BrokenArtifact, ThriftyError
from thrifty.train import chance
from thrifty.train.files import read_json, write_bytes, write_json
from thrifty.train.log import Log
from thrifty.train.processes import Processes

STATE = "state.json"
SCHEMA = 1
States = dict[str, Tensor]


class Checkpoint:
    """The checkpoint of one training in ``folder``. ``identity`` says what a resumed training must have in common with it."""

    def __init__(self, folder: Path, identity: dict[str, Any], processes: Processes) -> None:
        self.folder, self.identity, self.processes = folder, identity, processes
        self._best: tuple[int | None, dict[str, str] | None] = (None, None)

    def write(self, at: Attachment, optimizer: torch.optim.Optimizer, log: Log, best: States | None) -> None:
        """Write down everything that the next step depends on. All processes take part, the main one writes."""
        tensors, states = collect(at, optimizer)
        drawn, plain = chance.write_down(self.processes.device)
        sources = self.processes.gather((drawn, plain))
        for rank, (held, _) in enumerate(sources):
            tensors |= {f"random:{rank}:{name}": t for name, t in held.items()}
        if self.processes.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            if log.best_step != self._best[0]:
                kept = self._put(f"best-{log.best_step:08}.safetensors", best) if best else None
                self._best = log.best_step, kept
            written = self._put(f"tensors-{log.step:08}.safetensors", tensors)
            state = {"schema": SCHEMA, "identity": self.identity, "log": log.plain(), "optimizer": states,
                     "random": [plain for _, plain in sources], "off": [row.key for row in at.plan if not row.on],
                     "tensors": written, "best": self._best[1]}
            write_json(self.folder / STATE, state)
            self._tidy({written["file"], (self._best[1] or {}).get("file", "")})
        self.processes.wait()

    def read(self, at: Attachment, optimizer: torch.optim.Optimizer) -> tuple[Log, States | None] | None:
        """Put a written training back and return its log and best state; None if nothing was written yet.

        Raises:
            ThriftyError: the checkpoint belongs to another training; the message names what differs.
            BrokenArtifact: it is damaged.
        """
        if not (self.folder / STATE).is_file():
            return None
        state = read_json(self.folder / STATE)
        if not isinstance(state, dict) or state.get("schema") != SCHEMA:
            raise BrokenArtifact(f"{self.folder / STATE} is not a checkpoint of this version")
        refuse_other(state["identity"], self.identity, self.folder)
        tensors = self._get(state["tensors"])
        best = self._get(state["best"]) if state["best"] else None
        log = Log(**state["log"])
        self._best = log.best_step, state["best"]
        spread(at, optimizer, tensors, state["optimizer"])
        for row in at.plan:
            if row.key in state["off"]:
                at.disable(lambda r, key=row.key: r.key == key)  # type: ignore[misc]
        own = f"random:{self.processes.rank}:"
        chance.put_back({n.removeprefix(own): t for n, t in tensors.items() if n.startswith(own)},
                        state["random"][self.processes.rank], self.processes.device)
        return log, best

    def _put(self, name: str, tensors: States) -> dict[str, str]:
        from safetensors.torch import save

        data = save(tensors)
        write_bytes(self.folder / name, data)
        return {"file": name, "sha256": hashlib.sha256(data).hexdigest()}

    def _get(self, named: dict[str, str]) -> States:
        from safetensors.torch import load

        path = self.folder / Path(named["file"]).name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BrokenArtifact(f"the checkpoint lacks {path}: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != named["sha256"]:
            raise BrokenArtifact(f"{path} is not what was written: its contents do not match their hash")
        return load(data)

    def _tidy(self, wanted: set[str]) -> None:
        for path in self.folder.iterdir():
            if path.suffix == ".safetensors" and path.name not in wanted:
                path.unlink()


def collect(at: Attachment, optimizer: torch.optim.Optimizer) -> tuple[States, dict[str, dict[str, Any]]]:
    """What adapter, method and optimiser hold: tensors by name, and the optimiser's plain values by parameter."""
    tensors = {f"adapter:{name}": t for name, t in at.state().items()}
    tensors |= {f"memory:{name}": t.detach().to("cpu", copy=True).contiguous() for name, t in at.memory.items()}
    plain: dict[str, dict[str, Any]] = {}
    for i, held in optimizer.state_dict()["state"].items():
        for key, value in held.items():
            if isinstance(value, Tensor):
                whole = value.full_tensor() if hasattr(value, "full_tensor") else value
                tensors[f"optimizer:{i}:{key}"] = whole.detach().to("cpu", copy=True).contiguous()
            else:
                plain.setdefault(str(i), {})[key] = value
    return tensors, plain


def spread(at: Attachment, optimizer: torch.optim.Optimizer, tensors: States, plain: dict[str, dict[str, Any]]) -> None:
    """The opposite of ``collect``."""
    own = {n.removeprefix("adapter:"): t for n, t in tensors.items() if n.startswith("adapter:")}
    if at.method is not None:
        at.method.resume(at, own)
    at.load_state(own)
    at.memory = {n.removeprefix("memory:"): t.to(at.seen.device) for n, t in tensors.items() if n.startswith("memory:")}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in plain.items()}
    for name, value in sorted(tensors.items()):  # a file gives them in any order, but processes must exchange them in one
        if name.startswith("optimizer:"):
            _, i, key = name.split(":", 2)
            state.setdefault(int(i), {})[key] = _like(parameters[int(i)], value)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _like(parameter: Any, value: Tensor) -> Tensor:
    """``value``, spread over the processes as ``parameter`` is."""
    if not hasattr(parameter, "full_tensor") or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def refuse_other(there: Any, here: Any, folder: Path, path: str = "") -> None:
    """Compare what a checkpoint says of its training with the one that would go on from it.

    Raises:
        ThriftyError: naming the first difference.
    """
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *(k for k in here if k not in there)]:
            refuse_other(there.get(key), here.get(key), folder, f"{path}.{key}" if path else str(key))
    elif there != here:
        raise ThriftyError(f"cannot resume from {folder}: {path.removeprefix('config.')} was {there!r} and is {here!r} now. "
                           "Resume with what the training began with, or start anew with --overwrite (overwrite=True)")

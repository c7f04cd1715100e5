"""(IA)³: PEFT's ia3_l, and our scales at a layer's input or output."""
from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from ...core import Attachment
from ...core.errors import NoSuchSite
from .config import Config
from .naming import target_names
from .place import place, refuse_shape, take
from .refusal import CannotExpress
from .targets import targets


def read(at: Attachment, config: Config, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put a scale on every target; takes what it uses out of ``tensors`` and returns the attachment's state.

    Raises:
        BrokenArtifact: a tensor is missing or of the wrong shape.
        CannotExpress: a target is no layer that PEFT scales.
        NoSuchSite: a feed-forward module is listed that is not among the targets.
    """
    from ...methods.ia3 import Scale

    found = targets(at.model, config)
    inward: Any = config.get("feedforward_modules") or []
    pattern = isinstance(inward, str)
    terms: list[str] = [inward] if pattern else inward
    for term in terms:
        if not any(_inward(path, term, pattern) for path in found):
            raise NoSuchSite(f"feedforward_modules: {term!r} matches none of the targets {config['target_modules']}")
    state: dict[str, Tensor] = {}
    for path in found:
        site = place(at, path)
        module: Any = site.module
        if not isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)) and not hasattr(module, "nf"):
            raise CannotExpress(f"{path!r} is a {type(module).__name__}, which PEFT's (IA)³ does not scale")
        port = "input" if any(_inward(path, term, pattern) for term in terms) else "output"
        scale = take(tensors, f"{path}.ia3_l")
        refuse_shape(f"{path}.ia3_l", scale, shape(module, port, site.din, site.dout))
        at.put(site, Scale, port=port)
        state[f"edit:{at.plan[-1].key}:l"] = scale.flatten()
    return state


def shape(module: nn.Module, port: str, din: int, dout: int) -> tuple[int, ...]:
    """The shape in which PEFT keeps a scale."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        return (1, din if port == "input" else dout, *(1 for _ in module.kernel_size))
    return (1, din) if port == "input" else (dout, 1)


def write(at: Attachment, config: Config) -> dict[str, Tensor]:
    """Complete ``config`` and return the tensors. A scale of a part of a fused projection is one elsewhere.

    Raises:
        CannotExpress: a module is scaled at both its input and its output, or is of a kind that PEFT does not scale.
    """
    ports: dict[str, str] = {}
    found: dict[str, Tensor] = {}
    for row in at.plan:
        edit: Any = at.edits[row.key]
        site = place(at, row.path)
        module: Any = site.module
        if not isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)) and not hasattr(module, "nf"):
            raise CannotExpress(f"{row.path!r} is a {type(module).__name__}, which PEFT's (IA)³ does not scale")
        if ports.setdefault(row.path, edit.port) != edit.port:
            raise CannotExpress(f"{row.path!r} is scaled at its input and its output: PEFT's (IA)³ does one of them")
        own: Tensor = edit.l.detach()
        whole = found.get(row.path, own.new_ones(site.dout if edit.port == "output" else site.din))
        split = row.part if edit.port == "output" else None
        found[row.path] = whole * own if split is None else split.put(whole, split.take(whole) * own)
    config["fan_in_fan_out"] = all(hasattr(at.model.get_submodule(p), "nf") for p in found)
    config["target_modules"] = target_names(at.model, list(found), config)
    config["feedforward_modules"] = _inward_names(config["target_modules"], ports)
    shapes = {path: shape(at.model.get_submodule(path), ports[path], len(t), len(t)) for path, t in found.items()}
    return {f"{path}.ia3_l": t.view(shapes[path]) for path, t in found.items()}


def _inward_names(listed: list[str] | str, ports: dict[str, str]) -> list[str] | str:
    """Which of the targets are scaled at their input; full paths or a pattern where last names would mean others too."""
    inward = sorted(p for p, port in ports.items() if port == "input")
    if isinstance(listed, list):
        names = [t for t in listed if any(_inward(p, t, False) for p in inward)]
        if all(any(_inward(p, t, False) for t in names) == (port == "input") for p, port in ports.items()):
            return names
    return "|".join(re.escape(p) for p in inward)


def _inward(path: str, term: str, pattern: bool) -> bool:
    return bool(re.fullmatch(term, path)) if pattern else path.endswith(term)

"""Which modules a config means: PEFT's matching rules, where a name that matches nothing is an error."""
from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from ...core import base
from ...core.errors import BrokenArtifact, HalfAdapted, NoSuchSite, nearest
from ...core.opening import Rows
from .config import Config

ADDED = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


def module_names(model: nn.Module) -> list[str]:
    """Names of the base model's modules, as PEFT would list them."""
    return [n for n, m in base.modules(model) if n and not isinstance(m, Rows)]


def targets(model: nn.Module, config: Config) -> list[str]:
    """Paths of the modules that get a tuner, in the model's order.

    Raises:
        NoSuchSite: a listed name, the regular expression, or a listed layer matches no module.
        HalfAdapted: a target stands at two places of the model, of which PEFT would wrap one.
        BrokenArtifact: the targets are not given as names or a regular expression.
    """
    wanted = config.get("target_modules")
    if not wanted or wanted == "all-linear" or not isinstance(wanted, str) and not all(isinstance(w, str) for w in wanted):
        raise BrokenArtifact(f"target_modules = {wanted!r} names no modules")
    if isinstance(wanted, str) and config.get("layers_to_transform") is not None:
        raise BrokenArtifact("layers_to_transform needs target_modules to be a list")
    names, found = module_names(model), matched(model, config)
    for term in [wanted] if isinstance(wanted, str) else wanted:
        if not any(_named(n, term, isinstance(wanted, str)) for n in found):
            ends = {n.rpartition(".")[2] for n in names}
            raise NoSuchSite(f"target_modules: {term!r} matches no module of {type(model).__name__}." + nearest(term, ends))
    layers = config.get("layers_to_transform")
    for layer in [layers] if isinstance(layers, int) else layers or []:
        if not any(_layer(n, config) == layer for n in found):
            raise NoSuchSite(f"layers_to_transform: no target lies in layer {layer!r} of {type(model).__name__}")
    mounts: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        mounts.setdefault(id(module), []).append(name)
    for name in found:
        if len(places := mounts[id(model.get_submodule(name))]) > 1:
            raise HalfAdapted(f"{name!r} is one module at several places, {places}: PEFT adapts one, an edit here would act at "
                              "all of them")
    return found


def matched(model: nn.Module, config: Config) -> list[str]:
    """Paths of the modules that PEFT's rules pick, whatever they be."""
    return [n for n in module_names(model) if _meant(n, config)]


def saved_modules(model: nn.Module, config: Config) -> list[str]:
    """Paths of the modules that are kept in full.

    Raises:
        NoSuchSite: a listed name matches no module; but for the heads that PEFT adds by itself when it knows the task.
    """
    listed = config.get("modules_to_save") or []
    names = module_names(model)
    added = ADDED.get(config.get("task_type") or "", ())
    found: list[str] = []
    for term in listed:
        hits = [n for n in names if n.endswith(term)]
        if not hits and not (term in added and any(n.endswith(a) for a in added for n in names)):
            raise NoSuchSite(f"modules_to_save: {term!r} matches no module of {type(model).__name__}." + nearest(term, names))
        found += [n for n in hits if n not in found]
    return [n for n in found if not any(n.startswith(other + ".") for other in found)]


def pattern_value(patterns: dict[str, Any] | None, name: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of ``name``, whole components of it."""
    return next((v for p, v in (patterns or {}).items() if re.match(rf"(.*\.)?({p})$", name)), default)


def refuse_unused(patterns: dict[str, Any] | None, what: str, found: Iterable[str]) -> None:
    """Refuse patterns that are the first match of no target.

    Raises:
        NoSuchSite: naming the pattern.
    """
    every = list(found)
    for pattern in patterns or {}:
        if not any(re.match(rf"(.*\.)?({pattern})$", n) for n in every):
            raise NoSuchSite(f"{what}: {pattern!r} matches none of the {len(every)} targets." + nearest(pattern, every))


def _meant(name: str, config: Config) -> bool:
    without = config.get("exclude_modules") or []
    if isinstance(without, str) and re.fullmatch(without, name) or \
            not isinstance(without, str) and any(_named(name, w, False) for w in without):
        return False
    if any(re.match(rf"(^|.*\.){m}($|\..*)", name) for m in config.get("modules_to_save") or []):
        return False
    wanted = config["target_modules"]
    if isinstance(wanted, str):
        return _named(name, wanted, True)
    if not any(_named(name, w, False) for w in wanted):
        return False
    if name in wanted:
        return True
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    return _layer(name, config) in ([layers] if isinstance(layers, int) else layers)


def _named(name: str, term: str, pattern: bool) -> bool:
    return bool(re.fullmatch(term, name)) if pattern else name == term or name.endswith(f".{term}")


def _layer(name: str, config: Config) -> int | None:
    stacks = config.get("layers_pattern") or []
    for stack in [stacks] if isinstance(stacks, str) else stacks:
        if match := re.match(rf"(?:^|.*?\.){stack}\.(\d+)\.", name):
            return int(match[1])
    match = None if stacks else re.match(r".*?\.[^.]*\.(\d+)\.", name)
    return int(match[1]) if match else None

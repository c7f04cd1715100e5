"""Ledger: what a model must get back. One per model, whatever the number of attachments, so that freezing is counted."""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import base, saving
from .digest import digest
from .errors import FrozenMoved, HalfAdapted, NoSuchSetting, ThriftyError, Unfit, nearest
from .opening import close_attention, open_attention
from .sparse import hold

if TYPE_CHECKING:
    from .attachment import Attachment

FIRST = "all"  # until somebody asks for less


class Ledger:
    """The attachments on one model, in order; how its parameters stood before the first; what they changed in place."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.attachments: dict[str, Attachment] = {}
        self.merges: list[Attachment] = []  # those that are merged, the first one lowest
        self.wanted = {name: p.requires_grad for name, p in model.named_parameters()}
        self.handles: list[torch.utils.hooks.RemovableHandle] = []
        self.modes: dict[str, bool] = {}
        self.saving: list[torch.utils.hooks.RemovableHandle] = []
        self.keep(FIRST)
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm) and module.track_running_stats:
                self.modes[name] = module.training
                module.eval()
                self.handles.append(module.register_forward_pre_hook(_hold_still))
        open_attention(model)
        for p in model.parameters():
            p.requires_grad_(False)

    def keep(self, level: str) -> None:
        """What forward passes keep for the backward pass from now on: "all" that torch keeps, "less", or the "least".

        Raises:
            NoSuchSetting: another level.
        """
        if level not in saving.LEVELS:
            raise NoSuchSetting(f"activations: {level!r} is not one of {', '.join(saving.LEVELS)}." + nearest(level, saving.LEVELS))
        for handle in self.saving:
            handle.remove()
        self.level, self.saving = level, saving.listen(self.model, level)

    def close(self) -> None:
        """Give the model back as it was before the first attachment."""
        close_attention(self.model)
        for handle in (*self.handles, *self.saving):
            handle.remove()
        for name, mode in self.modes.items():
            self.model.get_submodule(name).train(mode)
        for name, p in self.model.named_parameters():
            p.requires_grad_(self.wanted.get(name, p.requires_grad))

    def owner(self, name: str) -> str | None:
        """Which attachment trains the base parameter or buffer ``name`` in place."""
        return next((a.name for a in self.attachments.values() if name in a.base), None)

    def base_tensors(self, skip: frozenset[str] = frozenset()) -> dict[str, Tensor]:
        """The base model's parameters and persistent buffers as they were, by every name, without those in ``skip``."""
        found: dict[str, Tensor] = {}
        first = first_names(self.model)
        originals = {n: t for a in reversed(self.merges) for n, t in a.backup.items()}
        originals |= {n: t for a in self.attachments.values() for n, t in a.base.items()}
        for name, tensor in base.tensors(self.model).items():
            known = first.get(name, name)
            if known not in skip and isinstance(tensor, Tensor):
                found[name] = originals.get(known, tensor)
        return found


def ledger(model: nn.Module) -> Ledger | None:
    """The model's ledger, if anything is attached."""
    return model.__dict__.get("_thrifty")


def attachments(model: nn.Module) -> dict[str, Attachment]:
    """The attachments on ``model`` by name, in order; also on a deep copy or an unpickled one."""
    book = ledger(model)
    for at in book.attachments.values() if book else ():
        for name, mask in at.masks.items():  # a copy of a parameter comes without the hooks of its original
            hold(model.get_parameter(name), mask)
    return dict(book.attachments) if book else {}


def merged(model: nn.Module) -> list[Attachment]:
    """The attachments that are merged into ``model``, in the order in which they were."""
    book = ledger(model)
    return list(book.merges) if book else []


def enter(at: Attachment) -> Ledger:
    """Write ``at`` into its model's ledger; the first one freezes the model.

    Raises:
        ThriftyError: the name is taken, the model is sharded already, or it is a compiled wrapper.
    """
    model = at.model
    if any(hasattr(p, "full_tensor") for _, p in base.parameters(model)):
        raise ThriftyError(f"{type(model).__name__} is sharded already: attach first, then shard, then compile")
    if hasattr(model, "_orig_mod"):
        raise ThriftyError("this is the wrapper that torch.compile returned: attach to the model inside it (model._orig_mod)")
    book = ledger(model)
    if book is None:
        model.__dict__["_thrifty"] = book = Ledger(model)
    if at.name in book.attachments:
        raise ThriftyError(f"an attachment called {at.name!r} is on this model already: give this one another name=")
    book.attachments[at.name] = at
    return book


def leave(at: Attachment) -> None:
    """Strike ``at`` out; the last one gives the model back."""
    book = ledger(at.model)
    if book is None or book.attachments.pop(at.name, None) is None:
        return
    if not book.attachments:
        book.close()
        del at.model.__dict__["_thrifty"]


def canonical(model: nn.Module, name: str) -> str:
    """The first of the names under which the model lists the parameter ``name``.

    Raises:
        ThriftyError: there is no such parameter.
    """
    every = dict(base.parameters(model, remove_duplicate=False))
    if name not in every:
        raise ThriftyError(f"{type(model).__name__} has no parameter {name!r}." + nearest(name, every))
    return next(n for n, p in base.parameters(model) if p is every[name])


def unfrozen(model: nn.Module) -> list[str]:
    """Names of the base parameters that were free to train before anything was attached.

    Raises:
        Unfit: weights are quantised, and no whole model trains without them.
    """
    book, every = ledger(model), dict(base.parameters(model))
    if packed := [name for name, p in every.items() if not p.is_floating_point()]:
        raise Unfit(f"{packed[0]!r} is quantised ({len(packed)} such), and has no gradient: choose a method that adds parameters, "
                    "or hold the weights in full")
    return [name for name in every if book is None or book.wanted.get(name, True)]


def first_names(model: nn.Module) -> dict[str, str]:
    """Every name of a parameter -> the first under which the model lists it; they differ where it is tied."""
    first = {id(p): name for name, p in base.parameters(model)}
    return {name: first[id(p)] for name, p in base.parameters(model, remove_duplicate=False)}


def other_names(model: nn.Module, parameter: Tensor) -> list[str]:
    """All names under which one parameter is used, when it is tied."""
    return [n for n, p in base.parameters(model, remove_duplicate=False) if p is parameter]


def refuse_tied(model: nn.Module, holders: dict[str, nn.Module]) -> None:
    """Refuse edits on some of the modules that share one weight.

    Raises:
        HalfAdapted: naming the weight and the modules that would stay as they are.
    """
    names: dict[int, set[str]] = {}
    for name, p in base.parameters(model, remove_duplicate=False):
        names.setdefault(id(p), set()).add(name.rpartition(".")[0])
    held = {id(m) for m in holders.values()}
    edited = {path for path, m in base.modules(model, remove_duplicate=False) if id(m) in held}
    for path, module in holders.items():
        for short, p in module.named_parameters(recurse=False):
            rest = names.get(id(p), set()) - edited
            if rest:
                others = sorted(f"{r}.{short}" for r in rest)
                raise HalfAdapted(f"{path}.{short} is tied to {others}: an edit on {path!r} alone would adapt only one of its "
                                  "uses. Name them all, or pass tied='leave' to mean just this one")


def snapshot(model: nn.Module) -> dict[str, str]:
    """Checksums of everything in ``model`` that is frozen: parameters that do not train, and batch-norm statistics."""
    book = ledger(model)
    claimed = {n for a in book.attachments.values() for n in a.base} if book else set()
    frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad and n not in claimed}
    still = {n: b for n, b in base.buffers(model).items() if n not in claimed}
    return {n: digest(t, whole=t.numel() <= 1 << 27) for n, t in (frozen | still).items()}


def refuse_moved(model: nn.Module, before: dict[str, str]) -> None:
    """Compare with a ``snapshot``.

    Raises:
        FrozenMoved: naming the frozen tensors that are not what they were.
    """
    now = snapshot(model)
    moved = [name for name, sum_ in before.items() if now.get(name, sum_) != sum_]
    if moved:
        raise FrozenMoved(f"{len(moved)} frozen tensors of {type(model).__name__} changed: {moved[:5]}. Something outside the "
                          "attachment writes to them (an optimiser made before attaching, a buffer updated in training mode)")


def _hold_still(module: nn.Module, args: object) -> None:
    """A frozen batch norm uses the statistics it was trained with; model.train() must not wake it."""
    if module.training:
        module.training = False

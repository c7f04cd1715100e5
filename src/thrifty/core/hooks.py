"""Hooks: how edits live on a site as its children, and run before and after it."""
from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .errors import ThriftyError
from .fusing import fuse


class Edits(nn.ModuleDict):
    """The edits on one site, in the order in which they were put there, and the handles of the hooks that run them."""

    def __init__(self) -> None:
        super().__init__()
        self.handles: tuple[RemovableHandle, ...] = ()

    def forward(self, x: Any) -> Any:
        """``x`` as it is: an nn.Sequential calls each of its children, and its hooks have run the edits already."""
        return x

    def at(self, port: str) -> list[Any]:
        """Those that are on and act at ``port``."""
        return [e for e in self.values() if getattr(e, "port", None) == port and e.on]


class Around:
    """Stands in for the forward of a module whose edits decide whether, and on what, it runs; an object, so that it pickles."""

    def __init__(self, module: Any) -> None:
        self.module, self.patch = module, module.__dict__.get("forward")  # somebody else's patch goes on acting

    def own(self, *args: Any, **kwargs: Any) -> Any:
        """What the module does by itself."""
        if self.patch is not None:
            return self.patch(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run: Any = self.own
        for edit in self.module.edits.at("around"):
            run = partial(edit, run)
        return run(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.patch or partial(type(self.module).forward, self.module))


def edits_on(module: nn.Module) -> Edits:
    """The edits that live on ``module``; empty, and not kept, if there are none."""
    found = getattr(module, "edits", None)
    return found if isinstance(found, Edits) else Edits()


def install(module: nn.Module, slot: str, edit: nn.Module) -> None:
    """Make ``edit`` a child of ``module`` under ``edits.<slot>``, in the mode that the module is in.

    Raises:
        ThriftyError: the module has something else called ``edits``, or the slot is taken.
    """
    if not hasattr(module, "edits"):
        module.edits = Edits()
    edits = module.edits
    if not isinstance(edits, Edits):
        raise ThriftyError(f"{type(module).__name__} has its own attribute 'edits', the name under which edits live: rename it")
    if slot in edits:
        raise ThriftyError(f"{type(module).__name__} already holds an edit called {slot!r}")
    edits[slot] = edit.train(module.training)
    rehook(module)


def rehook(module: nn.Module) -> None:
    """Hook the module if one of its edits is on, and only then: torch takes other kernels where it sees an idle hook."""
    edits = edits_on(module)
    wanted = any(getattr(e, "on", False) for e in edits.values())
    if wanted and not edits.handles:
        edits.handles = (module.register_forward_pre_hook(_before, with_kwargs=True),
                         module.register_forward_hook(_after, with_kwargs=True, always_call=True))
    elif not wanted:
        for handle in edits.handles:
            handle.remove()
        edits.handles = ()
    _surround(module, any(getattr(e, "on", False) and getattr(e, "port", None) == "around" for e in edits.values()))


def _surround(module: nn.Module, wanted: bool) -> None:
    there = module.__dict__.get("forward")
    if wanted and not isinstance(there, Around):
        module.__dict__["forward"] = Around(module)
    elif not wanted and isinstance(there, Around):
        del module.__dict__["forward"]
        if there.patch is not None:
            module.__dict__["forward"] = there.patch


def remove(module: nn.Module, slot: str) -> None:
    """Take an edit away; with the last one goes every trace."""
    edits = edits_on(module)
    del edits[slot]
    rehook(module)
    if not edits:
        del module.edits


def _before(module: Any, args: Any, kwargs: Any) -> Any:
    edits = module.edits
    for edit in reversed(edits.at("call")):
        args, kwargs = edit(args, kwargs)
    for edit in edits.at("input"):
        if args:
            args = (edit(args[0]), *args[1:])
        else:
            name = next(k for k, v in kwargs.items() if isinstance(v, Tensor))
            kwargs = {**kwargs, name: edit(kwargs[name])}
    for edit in edits.at("attention"):
        edit.mode.__enter__()
    return args, kwargs


def _after(module: Any, args: Any, kwargs: Any, out: Any) -> Any:
    edits = module.edits
    for edit in reversed(edits.at("attention")):
        edit.mode.__exit__(None, None, None)
    acting = edits.at("output")
    if not acting or out is None:  # None: the site raised, and this call is only to leave the attention modes
        return out
    x = args[0] if args else next((v for v in kwargs.values() if isinstance(v, Tensor)), None)
    y = main(out)
    if x is not None and (together := fuse(module, acting, y, x)) is not None:
        return together
    for edit in acting:
        part = edit.part
        y = edit(y, x) if part is None else part.put(y, edit(part.take(y), x))
    return with_main(out, y)


def main(out: Any) -> Tensor:
    """The tensor that matters in what a module returned: itself, the first of a tuple, the logits of an HF output."""
    if isinstance(out, Tensor):
        return out
    return out[0] if isinstance(out, (tuple, list)) else out["logits" if "logits" in out else next(iter(out))]


def with_main(out: Any, y: Tensor) -> Any:
    """``out`` with ``y`` in the place of ``main(out)``."""
    if isinstance(out, Tensor):
        return y
    if isinstance(out, (tuple, list)):
        return type(out)((y, *out[1:])) if not hasattr(out, "_fields") else type(out)(y, *out[1:])
    return type(out)(**{**out, "logits" if "logits" in out else next(iter(out)): y})

"""Timeline: in what order the modules of a model ran in one forward pass, and what its blocks took in and gave out."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from thrifty.core import Edit
from thrifty.core.base import owned
from thrifty.core.errors import Unfit
from thrifty.core.probe import run_once
from thrifty.core.roles import blocks


@dataclass
class Call:
    """The first call of a module. Outside of blocks also what came in first, and what went out before any edit there."""

    began: int
    ended: int = -1
    times: int = 1
    given: Tensor | None = None
    out: Any = None


@dataclass
class Timeline:
    """The calls of all modules by path, on a batch of so many ``rows``; ``blocks`` are those that run first, in their order."""

    model: nn.Module
    calls: dict[str, Call]
    rows: int
    blocks: list[str]

    def began(self, path: str) -> int:
        """When the module began, or what was called of all that it lies in."""
        while path not in self.calls:
            path = path.rpartition(".")[0]
        return self.calls[path].began

    def ended(self, path: str) -> int:
        """When the module ended; one that was never called counts as early as can be."""
        return self.calls[path].ended if path in self.calls else self.began(path)

    def holds_rows(self, path: str) -> bool:
        """Whether a module takes in one vector per row [rows, D]."""
        given = self.calls[path].given
        return given is not None and given.dim() == 2 and len(given) == self.rows and given.is_floating_point()

    def agree(self, other: Timeline) -> None:
        """Forget what came in where it only looks as if it had a place for each row: with ``other`` rows it has not."""
        for path, call in self.calls.items():
            there = other.calls[path].given if path in other.calls else None
            if call.given is not None and (there is None or (len(call.given) == self.rows) != (len(there) == other.rows)):
                call.given = None

    def before(self, path: str) -> Iterator[str]:
        """The outermost modules that ran, once, before the one at ``path`` began."""
        until = self.calls[path].began
        taken: list[str] = []
        for other, call in self.calls.items():
            inside = any(other.startswith(outer + ".") for outer in taken)
            if other and call.ended < until and call.times == 1 and not inside:
                taken.append(other)
                yield other


def record(model: nn.Module, inputs: Mapping[str, Any], rows: int) -> Timeline:
    """Run the model once, in evaluation mode, and write down what happens."""
    clock, known = count(), blocks(model)
    calls: dict[str, Call] = {}

    def enter(path: str, near: bool) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            if path in calls:
                calls[path].times += 1
            else:
                calls[path] = Call(next(clock), given=first(args, kwargs) if near else None)
        return hook

    def leave(path: str, near: bool) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            if calls[path].times == 1:
                calls[path].ended, calls[path].out = next(clock), out if near else None
        return hook

    handles = []
    for path, module in model.named_modules():
        if isinstance(module, Edit):  # where answers are kept as long as nothing changes, a hook on an edit asks to see it called
            handles.append(module.register_forward_pre_hook(lambda *_: None))
        elif not owned(path):
            near = not any(path.startswith(block + ".") for block in known)
            handles.append(module.register_forward_pre_hook(enter(path, near), with_kwargs=True, prepend=True))
            handles.append(module.register_forward_hook(leave(path, near), with_kwargs=True, prepend=True))
    try:
        run_once(model, dict(inputs))
    finally:
        for handle in handles:
            handle.remove()
    calls = {path: call for path, call in calls.items() if call.ended >= 0}
    return Timeline(model, calls, rows, _in_order(model, known, calls, rows))


def first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The first tensor that a module is called with, which edits call x."""
    return next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)


def _in_order(model: nn.Module, known: Mapping[str, tuple[str, int]], calls: Mapping[str, Call], rows: int) -> list[str]:
    """The blocks of the stack that runs first, in the order in which they ran.

    Raises:
        Unfit: there are none; or they do not run from the first to the last, each once, row by row, before all other blocks.
    """
    kind, ran = type(model).__name__, [path for path in known if path in calls]
    if not ran:
        raise Unfit(f"no blocks of {kind} are known")
    stack = known[min(ran, key=lambda path: calls[path].began)][0]
    mine = [path for path in known if known[path][0] == stack]
    for path in mine:
        times = calls[path].times if path in calls else 0
        if times != 1:
            raise Unfit(f"the block {path!r} of {kind} runs {times} times in a forward pass, not once")
    found = sorted(mine, key=lambda path: calls[path].began)
    if others := [path for path in ran if path not in mine and calls[path].began < calls[found[-1]].ended]:
        raise Unfit(f"the block {others[0]!r} of {kind} runs between those of {stack!r}")
    for path in found:
        states = [leaf for leaf in tree_leaves(calls[path].out) if isinstance(leaf, Tensor)]
        if len(states) != 1:
            raise Unfit(f"the block {path!r} of {kind} gives {len(states)} tensors, not one state")
        if states[0].dim() < 2 or len(states[0]) != rows:
            raise Unfit(f"a batch of {rows} rows leaves the block {path!r} of {kind} as {tuple(states[0].shape)}")
    return found

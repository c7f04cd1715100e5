"""Replay: a model that is given the states of its frozen part instead of computing them."""
from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from thrifty.core.errors import Unfit
from thrifty.core.hooks import with_main
from thrifty.trunk.cut import Cut, Place
from thrifty.trunk.timeline import Timeline, first


class Replay:
    """Stands in for the ``forward`` of what lies below ``cut``, while states are given; else everything computes as ever.

    Hooks are not touched, so that taps go on hearing, and edits at the output of a block go on acting. A block whose answer
    is not kept answers with its input, for ``pictures`` with zeros of its answer's size. What runs before the blocks is
    computed from texts, as that is a look into a table, and is zeros for pictures, which are then never read.
    """

    def __init__(self, cut: Cut, timeline: Timeline, pictures: bool) -> None:
        self.cut, self.timeline, self.model = cut, timeline, timeline.model
        self.now: Mapping[Place, Tensor] | None = None
        self.batch: Mapping[str, Any] = {}
        self.undo: list[Callable[[], object]] = []
        self.remembers = "use_cache" in inspect.signature(self.model.forward).parameters
        self._hook(self.model, self._ask)
        if cut.tail:
            self._stand("", self._answer)
            return
        for path in (*(timeline.before(cut.below[0]) if pictures else ()), *cut.below):
            place, out = Place("out", path), timeline.calls[path].out
            if place in cut.places:
                self._stand(path, partial(self._give, place, out))
            else:
                self._stand(path, partial(self._blank if pictures else with_main, out))
        for place in cut.places:
            if place.port == "in":
                self._hook(self.model.get_submodule(place.path), partial(self._enter, place))

    @contextlib.contextmanager
    def giving(self, states: Mapping[Place, Tensor], batch: Mapping[str, Any]) -> Iterator[None]:
        """While the context lasts the model is asked about ``batch``, whose ``states`` are these."""
        self.now, self.batch = states, batch
        try:
            yield
        finally:
            self.now, self.batch = None, {}

    def remove(self) -> None:
        """Leave the model as it was."""
        for back in reversed(self.undo):
            back()
        self.undo = []

    def _stand(self, path: str, answer: Callable[[Any], Any]) -> None:
        module = self.model.get_submodule(path)
        held, own = module.__dict__.get("forward"), module.forward

        @wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return own(*args, **kwargs) if self.now is None else answer(first(args, kwargs))

        module.__dict__["forward"] = forward
        self.undo.append(partial(module.__dict__.__setitem__, "forward", held) if held is not None
                         else partial(module.__dict__.__delitem__, "forward"))

    def _hook(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self.undo.append(module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True).remove)

    def _held(self, place: Place) -> Tensor:
        assert self.now is not None
        return self.now[place]

    def _give(self, place: Place, out: Any, x: Tensor) -> Any:
        return with_main(out, self._held(place))

    def _blank(self, out: Any, x: Tensor) -> Any:
        rows = len(next(iter(self.now.values()))) if self.now else 0

        def zeros(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.dim() or len(leaf) != self.timeline.rows:
                return leaf
            return torch.zeros((), dtype=leaf.dtype, device=leaf.device).expand(rows, *leaf.shape[1:])

        return tree_map(zeros, out)

    def _enter(self, place: Place, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if self.now is None:
            return None
        if args and isinstance(args[0], Tensor):
            return (self._held(place), *args[1:]), kwargs
        name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
        return args, {**kwargs, name: self._held(place)}

    def _answer(self, x: Any) -> Any:
        """What the whole model says: its last layers on the vectors, in the form of its answer."""
        states, out = self._held(self.cut.places[0]), self.timeline.calls[""].out
        for path in self.cut.tail:
            states = self.model.get_submodule(path)(states)
        if isinstance(out, Mapping):
            return type(out)(**{"logits" if "logits" in out else next(iter(out)): states})
        return states if isinstance(out, Tensor) else with_main(out[:1], states)

    def _ask(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """States belong to one batch; a model that is asked something else in between would answer about the wrong rows.

        Nor may it begin a cache of keys and values, which would lack those of the blocks that do not run.

        Raises:
            Unfit: it is asked something else.
        """
        if self.now is None:
            return None
        known = {name: value for name, value in kwargs.items() if name in self.batch and isinstance(value, Tensor)}
        if not known or args or not all(_equal(value, self.batch[name]) for name, value in known.items()):
            raise Unfit(f"{type(module).__name__} is asked about other inputs than those of the batch whose states are kept (the "
                        "method or the task runs it on more than the batch): train with cache='off'")
        return (args, {**kwargs, "use_cache": False}) if self.remembers else None


def _equal(one: Tensor, other: Any) -> bool:
    return one is other or isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)

"""Held: how many bytes of tensors are alive, after every operation of a block of code."""
from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Counting:
    """Bytes of memory, each piece from when it is first seen until nobody holds it: ``now``, and the ``most`` so far."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._alive: dict[int, weakref.ref[Any]] = {}

    def count(self, memory: torch.UntypedStorage) -> None:
        """See a piece."""
        place, size = memory._cdata, memory.nbytes()
        if place in self._alive:
            return

        def free(_: Any) -> None:
            if self._alive.pop(place, None) is not None:
                self.now -= size

        self._alive[place] = weakref.ref(memory, free)
        self.now += size
        self.most = max(self.most, self.now)


class Held(Counting, TorchDispatchMode):
    """While it is entered, counts the memory of every tensor on ``device`` that an operation gives, until nobody holds it.

    ``now`` and ``most`` are bytes. Memory that several tensors share counts once. What an operation needs inside, and gives back
    before it ends, is not seen: on a CPU these are a few tiles for each thread.
    """

    def __init__(self, device: torch.device) -> None:
        Counting.__init__(self)
        TorchDispatchMode.__init__(self)  # type: ignore[no-untyped-call]
        self.device = device

    def hold(self, tensors: Iterable[Tensor]) -> int:
        """Count tensors that were there before; how many bytes are new by that."""
        before = self.now
        for tensor in tensors:
            self._see(tensor)
        return self.now - before

    def begin(self) -> None:
        """Forget what was the most until now."""
        self.most = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return out

    def _see(self, tensor: Tensor) -> None:
        if tensor.layout is torch.strided and tensor.device.type == self.device.type:
            self.count(tensor.untyped_storage())

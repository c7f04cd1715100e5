"""Observed: what a block of code holds, computes and keeps for its backward pass, on tensors with or without numbers."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from thrifty.planning.work import Work
from thrifty.train.held import Counting, Held

ASKED = torch.ops.aten._local_scalar_dense.default


class Observed(Held):
    """Counts work beside memory. With ``answers``, whoever asks a tensor for its number is told 1: drawings have none."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.work, self.answers, self.skipped = Work(), False, 0

    def take(self) -> Work:
        """What was computed since this was last asked."""
        done, self.work = self.work, Work()
        return done

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.answers and func is ASKED:
            return 1.0 if args[0].is_floating_point() else 1
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if not self.skipped:
            self.work.add(func, args, kwargs or {}, out)
        return out

    @contextmanager
    def skipping(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """While it lasts, what goes on inside of these modules is no work."""
        handles: list[RemovableHandle] = []
        for module in modules:
            handles += [module.register_forward_pre_hook(self._enter), module.register_forward_hook(self._leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, *_: Any) -> None:
        self.skipped += 1

    def _leave(self, *_: Any) -> None:
        self.skipped -= 1


class Saved(Counting, torch.autograd.graph.saved_tensors_hooks):
    """Counts what autograd keeps between the passes: each piece of memory once, without ``own``, that of the model itself.

    ``most`` is in bytes. What gradient checkpointing keeps of a block, its input, is none of autograd's business and not seen.
    """

    def __init__(self, own: Iterable[Tensor]) -> None:
        Counting.__init__(self)
        torch.autograd.graph.saved_tensors_hooks.__init__(self, self._keep, lambda tensor: tensor)
        self._own = {tensor.untyped_storage()._cdata for tensor in own}

    def _keep(self, tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory._cdata not in self._own:
            self.count(memory)
        return tensor

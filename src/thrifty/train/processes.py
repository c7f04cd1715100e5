"""The processes of one training: one, or several that `accelerate launch` or `torchrun` started, by DDP or FSDP2.

Everything that one process does alone and several do together goes through here, so that there is one training loop.
"""
from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from thrifty.core.errors import Missing, NoSuchSetting, ThriftyError
from thrifty.core.roles import blocks

T = TypeVar("T")


class Processes:
    """Where this process stands among its ``world``. ``sharded`` says that weights are spread over all (FSDP2)."""

    def __init__(self, device: torch.device, rank: int = 0, world: int = 1, sharded: bool = False) -> None:
        self.device, self.rank, self.world, self.sharded = device, rank, world, sharded

    @property
    def main(self) -> bool:
        """Whether this is the one process that writes files."""
        return self.rank == 0

    @property
    def kind(self) -> str:
        """In a word: single, ddp or fsdp2."""
        return "single" if self.world == 1 else "fsdp2" if self.sharded else "ddp"

    def wrap(self, model: nn.Module, idle: bool) -> nn.Module:
        """``model`` as it must be called in training. Call after attaching: edits are sharded with their sites.

        ``idle`` says that some of what trains may get no gradient in a step, which costs DDP a look at every graph.
        """
        if self.world == 1:
            return model
        if not self.sharded:
            places = [self.device] if self.device.type == "cuda" else None
            return Parallel(model, device_ids=places, find_unused_parameters=idle)
        from torch.distributed.fsdp import fully_shard

        for path in blocks(model):
            fully_shard(model.get_submodule(path))
        fully_shard(model)  # changes it in place
        return model

    def settle(self, model: nn.Module) -> None:
        """FSDP keeps some weights gathered after a forward pass without a backward one: spread them again."""
        if self.sharded:
            from torch.distributed.fsdp import FSDPModule

            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    @contextlib.contextmanager
    def quietly(self, model: nn.Module, quiet: bool) -> Any:
        """Backward passes in the block keep their gradients to themselves if ``quiet``; others exchange them."""
        if isinstance(model, Parallel) and quiet:
            with model.no_sync():
                yield
            return
        if self.sharded:
            model.set_requires_gradient_sync(not quiet)  # type: ignore[operator]
        yield

    def total(self, *numbers: float) -> list[float]:
        """Each number summed over all processes."""
        if self.world == 1:
            return list(numbers)
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        sums = torch.tensor(numbers, dtype=kind, device=self.device)
        torch.distributed.all_reduce(sums)
        return sums.tolist()

    def gather(self, mine: T) -> list[T]:
        """What every process has, in their order, on every process."""
        if self.world == 1:
            return [mine]
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, mine)
        return found

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            torch.distributed.barrier()

    def once(self, do: Callable[[], T]) -> T:
        """Let the main process ``do`` something; all get its result, or its error."""
        if self.world == 1:
            return do()
        result: Any = None
        failure: ThriftyError | None = None
        if self.main:
            try:
                result = do()
            except ThriftyError as error:
                failure = error
        found, failure = self.gather((result, failure))[0]
        if failure is not None:
            raise failure
        return cast(T, found)


class Parallel(nn.parallel.DistributedDataParallel):
    """DDP that lets attributes of the model inside (its ``config``) be read as before."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def inside(model: nn.Module) -> nn.Module:
    """The model without a wrapper around it."""
    return model.module if isinstance(model, Parallel) else model


def here(device: str = "auto") -> Processes:
    """The processes that this one was started among.

    Raises:
        NoSuchSetting: a device that does not exist or cannot be chosen here; a launcher's option that would be ignored.
        Missing: several processes without accelerate.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Processes(find_device(device))
    if device != "auto":
        raise NoSuchSetting(f"device={device!r} is for one process; with {world} the launcher gives each its own")
    try:
        from accelerate import PartialState
    except ImportError:
        raise Missing(f"{world} processes need accelerate: pip install accelerate") from None
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if sharded and os.environ.get("FSDP_VERSION", "1") != "2":
        raise NoSuchSetting("FSDP version 1 cannot mix frozen and trained weights: pass --fsdp_version 2 to accelerate launch")
    if (mixed := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) not in ("no", "bf16"):
        raise NoSuchSetting(f"accelerate was launched with mixed precision {mixed!r}; thrifty computes in float32 or bfloat16 "
                            "(its own setting precision=)")
    if sharded:  # transformers would leave the weights of all but the first process empty, for accelerate to fill
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    state = PartialState(cpu=not torch.cuda.is_available())
    if state.num_processes != world:
        raise NoSuchSetting(f"{world} processes were started, but accelerate sees {state.num_processes}: all would do the same")
    return Processes(state.device, state.process_index, state.num_processes, sharded)


def find_device(name: str) -> torch.device:
    """The device called ``name``; "auto" is the best there is.

    Raises:
        NoSuchSetting: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise NoSuchSetting(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def place(model: nn.Module, device: torch.device) -> nn.Module:
    """``model`` on ``device``, moved only if it must be: tensors without numbers cannot be."""
    there = all(t.device == device for t in (*model.parameters(), *model.buffers()))
    return model if there else model.to(device)


def move(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A batch, on ``device``."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}

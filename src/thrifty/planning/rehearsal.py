"""Rehearsal: one step of a training is run from end to end on drawings, and what it holds and computes is written down.

The model, the method, the loop and the optimiser are those of the run itself, so there is no second account of what a step does.
Only the tensors have no numbers: what depends on numbers cannot be rehearsed, and says so. Attention is given a mask, as it is for
batches whose rows differ in length.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.core import Attachment, Method
from thrifty.models import Backbone
from thrifty.planning.drawing import draw, paper
from thrifty.planning.memory import Memory
from thrifty.planning.observed import Observed, Saved
from thrifty.planning.packed import pack
from thrifty.planning.scene import Scene
from thrifty.planning.work import Work
from thrifty.tasks.task import Task, predicting
from thrifty.train.choosing import resolve
from thrifty.train.job import Job
from thrifty.train.order import Order
from thrifty.train.predicting import length
from thrifty.train.settings import Settings
from thrifty.train.training import Examples, Training


@dataclass(frozen=True)
class Rehearsed:
    """What came out.

    ``learn`` is the work of both passes on one usual batch and ``update`` that of a step behind them, None for a method that takes
    none; ``answer`` is a forward pass on its ``examples`` with the method and ``plain`` one without, None where that depends on
    numbers; ``below`` what is computed once for each batch of rows and then read, where that was asked for.
    """

    memory: Memory
    learn: Work | None
    update: Work | None
    answer: Work | None
    plain: Work | None
    examples: int
    trainable: int
    adapter: int
    settings: Settings
    below: Work | None = None


class Straight(Order):
    """All rows in every step, as they come: nothing is drawn, as that takes numbers."""

    def step(self, step: int) -> list[int]:
        """Every row."""
        return list(range(self.rows))


class Halfway:
    """What a step had held and computed when all gradients were there and the optimiser began."""

    def __init__(self, seen: Observed, optimizer: torch.optim.Optimizer) -> None:
        self.seen, self.most, self.learn = seen, 0, Work()
        self.handle = optimizer.register_step_pre_hook(self._reach)

    def _reach(self, *_: Any) -> None:
        self.most, self.learn = self.seen.most, self.seen.take()
        self.handle.remove()


def rehearse(scene: Scene, method: Method) -> Rehearsed:
    """Rehearse a training of ``method``.

    Raises:
        ThriftyError: what the run itself would refuse.
        RuntimeError, and others of torch: the method looks at numbers, which drawings do not have.
    """
    settings = resolve(scene.settings, method, scene.form, scene.rows[0] if scene.rows else len(scene.largest), 1,
                       scene.precision.name)
    with perform(scene, method, settings) as (seen, job, at):
        kept = seen.now - (weights := size((*at.model.parameters(), *at.model.buffers())))
        adapter = adapter_size(at)
        memory = Memory(weights=weights, kept=kept, best=adapter if seen.device.type == "cpu" else 0)
        learn = update = None
        assert job.material is not None
        if not method.solved:
            memory, learn, update = _train(seen, job, at, memory)
            if shape(job.material.train) != shape(scene.usual):
                learn, update = repeat(seen, job, at, scene.usual)
        answer, plain, most = ask(seen, job, at, scene.usual)
        if method.solved:
            memory = replace(memory, step=most, peak=most + memory.best)
        numbers = at.summary().trainable if not at.masks else sum(p.numel() for p in at.parameters())
        return Rehearsed(memory, learn, update, answer, plain, len(scene.usual), numbers, adapter, settings)


@contextmanager
def perform(scene: Scene, method: Method, settings: Settings) -> Iterator[tuple[Observed, Job, Attachment]]:
    """A run that is ready for its first step, on drawings, as long as the context lasts."""
    device, mode, real = scene.processes.device, paper(), scene.backbone
    backbone = Backbone(draw(real.model, mode, device), real.preprocess, real.source, real.head)
    job = scene.job(backbone, method, settings)
    if settings.weights == "nf4":
        with mode:
            pack(backbone.model, real.source.get("new_tensors", ()))
    with mode, Observed(device) as seen:
        seen.hold((*backbone.model.parameters(), *backbone.model.buffers()))
        yield seen, job, job.prepare(0)


def _train(seen: Observed, job: Job, at: Attachment, memory: Memory) -> tuple[Memory, Work, Work]:
    """The step that takes most: until the optimiser has its states, and then the optimiser once more."""
    training = _training(job, at)
    halfway = Halfway(seen, training.optimizer)
    seen.begin()
    seen.take()
    seen.answers = True
    activations = _keep(seen, job, at, training)
    update, first = seen.take(), seen.most
    states = size(t for held in training.optimizer.state.values() for t in held.values() if isinstance(t, Tensor))
    gradients = size(p.grad for p in at.parameters())
    seen.begin()
    training.optimizer.step()
    seen.answers = False
    step, resting = max(first, halfway.most + states, seen.most), seen.now
    training.optimizer.zero_grad(set_to_none=True)
    memory = replace(memory, gradients=gradients, optimizer=states, activations=activations)
    return memory.settle(step, resting), halfway.learn, update


def _keep(seen: Observed, job: Job, at: Attachment, training: Training) -> int:
    """Take the step; what is kept between its passes. Where that is not autograd's choice, it is what is there between them."""
    if at.activations == "all" and not job.settings.checkpointing:
        saved = Saved((*at.model.parameters(), *at.model.buffers()))
        with saved:
            training.try_step()
        return saved.most
    before, found = seen.now, [0]
    with at.model.register_forward_hook(lambda *_: found.append(seen.now - before)):
        training.try_step()
    return max(found)


def repeat(seen: Observed, job: Job, at: Attachment, rows: Examples) -> tuple[Work, Work]:
    """The work of a usual step: on one batch, and behind it."""
    assert job.material is not None
    job.material = replace(job.material, train=rows)
    training = _training(job, at)
    halfway = Halfway(seen, training.optimizer)
    seen.take()
    seen.answers = True
    training.try_step()
    seen.answers = False
    training.optimizer.zero_grad(set_to_none=True)
    return halfway.learn, seen.take()


def _training(job: Job, at: Attachment) -> Training:
    assert job.material is not None
    training = Training(at, at.model, job.task, job.material, job.settings, 0, job.processes, job.precision)
    training.order = Straight(len(job.material.train), len(job.material.train), 0)
    return training


def ask(seen: Observed, job: Job, at: Attachment, rows: Examples) -> tuple[Work | None, Work | None, int]:
    """What a forward pass on usual rows computes with the method and without it, and the most that it held."""
    batch = job.task.collate(rows)
    seen.take()
    seen.begin()
    try:
        _answer(job, at.model, job.task, batch)
    except RuntimeError:  # where to stop, or what to leave out, is decided by numbers
        return None, None, seen.most
    answer, most = seen.take(), seen.most
    if not at.edits:
        return answer, answer, most
    with at.disabled():
        seen.take()
        _answer(job, at.model, job.task, batch)
        return answer, seen.take(), most


def _answer(job: Job, model: nn.Module, task: Task, batch: Any) -> None:
    with predicting(model), job.precision.autocast():
        model(**task.inputs(model, batch))


def shape(rows: Examples) -> tuple[int, int]:
    """How many rows there are, and how long the longest is."""
    return len(rows), max(map(length, rows))


def adapter_size(at: Attachment) -> int:
    """Bytes of all that the adapter's file would hold."""
    shared = [at.context.shared] if at.context.shared is not None else []
    tensors = [t for module in (*at.edits.values(), *shared) for t in module.state_dict(keep_vars=True).values()]
    return size((*tensors, *at.base.values()))


def size(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the memory of tensors, each piece once."""
    return sum({memory._cdata: memory.nbytes() for memory in (t.untyped_storage() for t in tensors if t is not None)}.values())

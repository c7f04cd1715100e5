"""The one training loop: steps, evaluations, early stopping, checkpoints; for one process and for several."""
from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.core import Attachment
from thrifty.core.errors import OverBudget, ThriftyError
from thrifty.tasks import Task
from thrifty.tasks.task import VIEW
from thrifty.train import optimizers
from thrifty.train.budget import Budget
from thrifty.train.checkpoint import Checkpoint, States
from thrifty.train.guard import Guard
from thrifty.train.interrupt import Interrupted, Wish
from thrifty.train.log import Log
from thrifty.train.mixture import Mixture, arrange
from thrifty.train.order import deal
from thrifty.train.precision import Precision
from thrifty.train.predicting import Abandoned, answer, length
from thrifty.train.processes import Processes, move
from thrifty.train.progress import Progress
from thrifty.train.rates import give_head, head_of
from thrifty.train.schedule import share
from thrifty.train.settings import Settings
from thrifty.trunk import Direct

Examples = list[dict[str, Any]]


@dataclass(frozen=True)
class Material:
    """What one training learns from and is judged by: encoded rows, and the validation table they came from."""

    train: Examples
    validation: Examples
    table: Any


class Training:
    """One training of ``at`` from one seed. ``settings`` has a rate and epochs; ``model`` is what ``processes`` wrapped;
    ``kept`` knows what of it need not be computed, and ``guard`` what it may take."""

    def __init__(self, at: Attachment, model: nn.Module, task: Task, material: Material, settings: Settings, seed: int,
                 processes: Processes, precision: Precision, kept: Direct | None = None, guard: Guard | None = None) -> None:
        assert settings.rate is not None and settings.epochs is not None and at.method is not None
        self.at, self.model, self.task, self.material, self.settings = at, model, task, material, settings
        self.processes, self.precision, self.method, self.kept = processes, precision, at.method, kept or Direct()
        self.order = arrange(material.train, settings.batch * settings.accumulate * processes.world, seed, settings.temperature,
                             settings.cap, settings.epochs)
        self.total = max(1, math.ceil(settings.epochs * self.order.per_epoch))
        if isinstance(self.order, Mixture):
            self.order.refuse_never(self.total)
        groups = self.method.groups(at, settings.rate, settings.decay)
        if settings.head_rate is not None:
            groups = give_head(groups, head_of(at, task), settings.head_rate)
        self.optimizer = optimizers.make(settings.optimizer, groups, settings.rate, processes.device)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.log = Log(seed)
        self.evaluate_at = evaluation_steps(self.total, self.order.per_epoch, settings.evaluations)
        self.taken = 0  # steps since this process began
        self.best: States | None = None
        self.revision = at.revision
        self.guard = guard or Guard(Budget(), processes.device)

    def run(self, checkpoint: Checkpoint | None, wish: Wish, progress: Progress, resume: bool = False) -> Log:
        """Train to the end, then put the best state back.

        Raises:
            Interrupted: the user asked to stop; what was done is in the checkpoint.
            ThriftyError: a loss that is not finite. NothingTrains: something that must train gets no gradient.
            OverBudget: it takes more than it was given; what was done is in the checkpoint.
        """
        self.checkpoint, self.wish, self.progress = checkpoint, wish, progress
        self.guard.begin()
        if resume and checkpoint is not None and (found := checkpoint.read(self.at, self.optimizer)) is not None:
            self.log, self.best = found
            self.revision = self.at.revision
            progress.done = progress.first = self.log.step
        while self.log.stopped is None:
            if self._wanted():
                self._leave()
            if self.log.step in self.evaluate_at and self.log.evaluated < self.log.step:
                self._evaluate()
            elif self.log.step >= self.total:
                self.log.stopped = "finished"
                self._keep()
            else:
                with self.guard.watching(self._size, self._tensors()):
                    self._step()
            if self.log.stopped is None and (why := self.guard.exceeded()) is not None:
                self._leave(why)
        if self.best is not None:
            self.at.load_state(self.best)
        return self.log

    def try_step(self) -> None:
        """One step alone, of which nothing is shown or written down: for whoever wants to see what a step takes."""
        self.progress = Progress(1, 0, "", False)
        self._step()

    # -- one step ---------------------------------------------------------------------------------------------------------
    def _step(self) -> None:
        began, step = time.monotonic(), self.log.step
        factor = share(step, self.total, self.settings.warmup, self.settings.schedule)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak if group.get("constant") else peak * factor
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()
        rows = self.order.step(step)
        loss = self._gradients(rows)
        self._watch()
        if isinstance(penalty := self.method.penalty(self.at), Tensor):
            with self.processes.quietly(self.model, True):
                penalty.backward()
        torch.nn.utils.clip_grad_norm_(self._trained(), self.settings.clip)
        self.optimizer.step()
        self.taken += 1
        self.log.stepped(self.total, self.order.epochs(step + 1), loss, self.optimizer.param_groups[0]["lr"])
        self.method.step(self.at, self.log.step, self.total)
        if self.revision != self.at.revision:
            self.revision, self.best = self.at.revision, None
            self.log.forget()
        self.log.examples += len(rows)
        self.log.train_seconds += time.monotonic() - began
        self.progress.step(loss, self.optimizer.param_groups[0]["lr"])
        if self.log.step % self.settings.checkpoint_every == 0 and self.log.step not in self.evaluate_at:
            self._keep()

    def _gradients(self, rows: list[int]) -> float:
        """Leave the gradient of the mean loss over all items of ``rows``, however they are cut into batches; return that mean.

        Losses are summed and the sum of gradients is divided once by the number of items, because batches may hold
        different numbers of them. Between processes gradients are averaged, hence the factor.
        """
        hands = deal(rows, self.settings.batch, self.processes.world, self.processes.rank)
        summed, items, turn = 0.0, 0, int(self.order.epochs(self.log.step))
        for i, chosen in enumerate(hands):
            examples = [self.material.train[row] for row in chosen or rows[:1]]
            batch = self._batch(examples)
            with self.processes.quietly(self.model, i < len(hands) - 1), self.kept.giving(examples, batch, turn):
                with self.precision.autocast():
                    task, own = self.task.turn(self.model, batch)
                    mean, count = self.method.loss(self.at, task, self.model, own)
                count = count if chosen else 0  # an empty hand takes part in the exchange, with nothing to add
                value = float(mean.detach())
                if not math.isfinite(value):
                    raise ThriftyError(f"the loss is {value} at step {self.log.step + 1}, on rows {_listed(chosen)} of the train "
                                       "split (counted from 0): lower the rate, look at them, or compute in float32")
                (mean * count).backward()
            summed, items = summed + value * count, items + count
        summed, total = self.processes.total(summed, items)
        for p in self._trained():
            if p.grad is not None:
                p.grad.mul_(self.processes.world / max(1.0, total))
        return summed / max(1.0, total)

    def _batch(self, examples: Examples) -> dict[str, Any]:
        """The rows as this step sees them, and as it sees them otherwise, where the method asks for that and the task can."""
        drawn = self.log.seed, self.log.step
        batch = self.kept.collate(self.task, self.task.vary(examples, *drawn))
        if self.method.second_view and self.task.varies:
            again = self.task.collate(self.task.vary(examples, *drawn, view=1))
            batch |= {VIEW + name: value for name, value in self.task.inputs(self.model, again).items()}
        return move(batch, self.processes.device)

    def _watch(self) -> None:
        """After two steps, all that trains must have had a gradient; after one, where DDP would not wait for more.

        Sharded tensors fire no hooks, so look at ``grad``.
        """
        watch, last = self.at.watch, 0 if getattr(self.model, "find_unused_parameters", True) is False else 1
        if watch is None or self.taken > last:
            return
        for name, p in self.at.named_parameters():
            if p.grad is not None:
                watch.seen.setdefault(name, 1)
        if self.taken == last:
            watch.judge()

    def _trained(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _size(self) -> int:
        """Tokens of the next step with their padding, or pictures."""
        rows = self.order.step(self.log.step)
        return len(rows) * max(1, *(length(self.material.train[row]) for row in rows))

    def _tensors(self) -> Iterator[Tensor]:
        """What is held between two steps, where the training is."""
        yield from (*self.at.model.parameters(), *self.at.model.buffers(), *self.at.base.values(), *self.at.memory.values())
        yield from (p.grad for p in self._trained() if p.grad is not None)
        yield from (value for held in self.optimizer.state.values() for value in held.values() if isinstance(value, Tensor))
        yield from (self.best or {}).values()

    # -- between steps ----------------------------------------------------------------------------------------------------
    def _evaluate(self) -> None:
        began, step = time.monotonic(), self.log.step
        try:
            predictions = answer(self.task.judge, self.task, self.model, self.material.validation, self.settings.batch,
                                 self.processes, self.precision, self.wish, self.kept)
        except Abandoned:
            self._leave()
        values = self.task.metrics(predictions, self.material.table)
        metric = self.task.metric
        if not math.isfinite(values[metric]):
            raise ThriftyError(f"the validation {metric} is {values[metric]} at step {step}: it cannot decide what to keep")
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        better = self.log.judged(self.order.epochs(step), values, metric, self.method.settled(self.at))
        if better:
            self.best = self.at.state()
        self.log.evaluate_seconds += time.monotonic() - began
        rate = self.optimizer.param_groups[0]["lr"]
        self.progress.say(self.order.epochs(step), self.log.last_loss(), rate, values, metric, better)
        if self.settings.patience and self.log.worse >= self.settings.patience and step < self.total:
            self.log.stopped = "early"
        elif step >= self.total:
            self.log.stopped = "finished"
        self._keep()

    def _wanted(self) -> bool:
        """Whether someone asked to stop; processes hear it at different moments and must agree."""
        return self.processes.total(float(self.wish.stop))[0] > 0

    def _keep(self) -> None:
        if self.checkpoint is not None:
            self.checkpoint.write(self.at, self.optimizer, self.log, self.best)

    def _leave(self, why: str | None = None) -> None:
        """Stop here, because the user asked for it, or because of what was exceeded."""
        self._keep()
        where = f"; the checkpoint in {self.checkpoint.folder} is complete" if self.checkpoint is not None else ""
        said = f"stopped after step {self.log.step} of {self.total}{where}"
        raise Interrupted(said) if why is None else OverBudget(f"{said}: {why}")


def evaluation_steps(total: int, per_epoch: int, evaluations: float) -> set[int]:
    """After which steps to evaluate: evenly, ``evaluations`` times an epoch, and at the end."""
    every = max(1.0, per_epoch / evaluations)
    return {min(total, round(i * every)) for i in range(1, math.ceil(total / every) + 1)} | {total}


def _listed(rows: list[int]) -> str:
    shown = ", ".join(map(str, sorted(rows)[:32]))
    return shown + (f", … ({len(rows)} in all)" if len(rows) > 32 else "")

"""What all seeds of one call of `tune` share, and the training of one of them from loading to the saved adapter."""
from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from thrifty import artifact, tasks, trunk
from thrifty.artifact.fingerprint import base_tensors
from thrifty.core import Attachment, Method, attach
from thrifty.core.digest import digests
from thrifty.core.errors import NoSuchSetting, OverBudget, ThriftyError, Unfit
from thrifty.core.ledger import refuse_moved, snapshot
from thrifty.core.watch import occasional
from thrifty.data import Dataset
from thrifty.data import Several as SeveralSets
from thrifty.methods.heads import heads
from thrifty.models import Backbone, load, preprocessing, wrap
from thrifty.models.together import widest
from thrifty.tasks import Task
from thrifty.tasks.several import Several
from thrifty.tasks.task import predicting
from thrifty.train import chance
from thrifty.train.checkpoint import Checkpoint, States
from thrifty.train.guard import Guard
from thrifty.train.interrupt import Interrupted, Wish
from thrifty.train.lessons import lessons
from thrifty.train.limits import find_limits
from thrifty.train.log import Log
from thrifty.train.precision import Precision
from thrifty.train.predicting import answer
from thrifty.train.processes import Processes, move, place
from thrifty.train.progress import Progress
from thrifty.train.rates import head_of
from thrifty.train.settings import Settings
from thrifty.train.training import Material, Training


@dataclass
class Trained:
    """One seed when its training is over. ``state`` is kept where the adapter cannot be loaded again from disk; ``notes`` are
    sentences of the method that a reader should know."""

    seed: int
    log: Log
    adapter: Path
    state: States | None
    parameters: dict[str, int]
    notes: list[str] = field(default_factory=list)


@dataclass
class Job:
    """One call of `tune`. ``config`` is everything that decides the numbers, as config.json holds it."""

    model: str | nn.Module | Backbone
    form: str  # the task whose form the model is loaded in
    method: Method
    dataset: Dataset
    settings: Settings
    folder: Path
    config: dict[str, Any]
    processes: Processes
    precision: Precision
    shown: bool = True
    resume: bool = False
    guard: Guard | None = None  # where there is a budget
    backbone: Backbone = field(init=False)
    task: Task = field(init=False)
    at: Attachment | None = None
    material: Material | None = None
    left_behind: list[str] = field(default_factory=list)  # tensors of the adapter that training starts from with no place here
    unlike: list[str] = field(default_factory=list)       # how that one's pictures were prepared otherwise
    cache: dict[str, Any] | None = None                    # what was kept of the frozen part, by the first seed

    def train(self, seed: int) -> Trained:
        """Load, attach, train, check that nothing else moved, save.

        Raises:
            Interrupted: the user asked to stop; the message says how to go on.
            ThriftyError: see `Training.run`, `attach` and `artifact.save`.
        """
        chance.sow(seed, self.processes.rank)
        at = self.at = self.prepare(seed)
        model, folder = self.backbone.model, self.folder / f"seed-{seed}"
        checkpoint = Checkpoint(folder / "checkpoint", self.identify(), self.processes)
        before = snapshot(model)
        assert self.material is not None
        idle = bool(occasional(at)) or type(self.method).step is not Method.step
        log = Log(seed, stopped="finished")
        kept = self.keep(at)
        if not self.method.solved:
            training = Training(at, self.processes.wrap(model, idle), self.task, self.material, self.settings, seed,
                                self.processes, self.precision, kept, self.guard)
            log = self.run(training, checkpoint)
        refuse_moved(model, before)
        trained = self.count()
        with predicting(model), self.precision.autocast():
            self.method.calibrate(at, self.task, self.batches(self.task, self.material.validation))
        self.method.finish(at)
        if self.method.solved:
            self.judge(log)
        return Trained(seed, log, self.save(folder / "adapter"), at.state() if self.processes.sharded else None, trained,
                       list(at.about.get("notes", ())))

    def judge(self, log: Log) -> None:
        """The only evaluation where no step is taken: it says which of several seeds is kept."""
        assert self.material is not None
        said = answer(self.task.judge, self.task, self.backbone.model, self.material.validation, self.settings.batch,
                      self.processes, self.precision)
        log.judged(0.0, self.task.metrics(said, self.material.table), self.task.metric)

    def run(self, training: Training, checkpoint: Checkpoint) -> Log:
        """All steps of one training, or those that an interrupted one has left.

        Raises:
            Interrupted: the user asked to stop; the message says how to go on. OverBudget: it took more than it
                was given; likewise.
        """
        name = f"seed {training.log.seed}" if self.settings.seeds > 1 else "training"
        progress, wish = Progress(training.total, 0, name, self.shown and self.processes.main), Wish()
        try:
            with wish.heard():
                return training.run(checkpoint, wish, progress, self.resume)
        except Interrupted as stopped:
            raise Interrupted(f"{name} {stopped}. To go on: the same command with --resume (in Python resume=True)") from None
        except OverBudget as stopped:
            raise OverBudget(f"{name} {stopped}. To go on: the same command with a larger budget and --resume (in Python "
                             "resume=True)") from None
        finally:
            progress.close()
            training.kept.remove()

    def prepare(self, seed: int) -> Attachment:
        """A backbone with the method attached, and encoded rows."""
        if self.at is not None and not self.processes.sharded:
            self.at.detach()
        self.backbone = self.load(seed)
        model = place(self.backbone.model, self.processes.device)
        self.task = tasks.get(self.dataset.task, self.backbone, self.dataset.labels, **find_limits(self.dataset, self.settings))
        train, validation = self.dataset.splits["train"], self.dataset.splits["validation"]
        self.task.fit(train)
        if self.material is None:
            rows = self.task.encode(train), self.task.encode(validation)
            self.material = Material(*(rows if self.settings.cache == "off" else trunk.number(*rows)), validation)
        if self.settings.checkpointing:
            recompute(model)
        names, widths = (list(self.task.parts), self.task.outputs) if isinstance(self.task, Several) else ([], [])
        at = attach(model, self.method, also_train="|".join(self.task.head_parameters) or None, seed=seed,
                    example=self.example(), batches=lessons(self, seed), tasks=names,
                    beside=heads(*widths) if widths and not self.settings.one_head else None, source_head=self.backbone.head,
                    activations=self.settings.activations)
        if self.settings.start is not None:
            self.left_behind = artifact.begin(at, self.settings.start)
            before = artifact.inspect(self.settings.start)["about"].get("image")
            self.unlike = preprocessing.differences(before, self.backbone.source.get("image"))
        if at.masks and self.processes.sharded:
            raise Unfit(f"{self.method.name} trains parts of weights in place, which cannot be done while they are spread over "
                        "processes: train it with DDP (without --use_fsdp)")
        return at

    def keep(self, at: Attachment) -> trunk.Direct:
        """What a training asks for its batches: with a cache the frozen part of the model is run once, and read afterwards.

        Raises:
            Unfit: it cannot be, and was not to be decided here; see `trunk.keep`.
        """
        assert self.material is not None
        settings, processes = self.settings, self.processes
        terms = trunk.Terms(settings.cache, settings.cache_as, settings.batch, processes.device, self.precision.autocast,
                            self.precision.name, self.backbone.source.get("image"), processes.world,
                            lambda line: print(line, file=sys.stderr, flush=True) if self.shown and processes.main else None)
        kept = trunk.keep(at, self.task, self.material.train, self.material.validation, terms)
        self.cache = self.cache or kept.record
        return kept

    def load(self, seed: int) -> Backbone:
        """The backbone; new tensors of a named one are drawn under ``seed``. For several tasks it has the form of the widest."""
        if isinstance(self.model, str):
            return load(self.model, self.form, self.form_labels(), weights=self.settings.weights, seed=seed)
        if self.settings.weights != "full":
            raise NoSuchSetting(f"weights={self.settings.weights!r} is for models given by name: hold those of a module so "
                                "yourself, with thrifty.models.quantise")
        return self.model if isinstance(self.model, Backbone) else wrap(self.model)

    @property
    def widest(self) -> str | None:
        """Of several tasks the one whose head is as wide as the model's own; None of one."""
        sets = self.dataset
        if not isinstance(sets, SeveralSets):
            return None
        return widest({name: part.task if part.format is None else self.form for name, part in sets.parts.items()},
                      {name: part.labels for name, part in sets.parts.items()})

    def form_labels(self) -> list[str] | None:
        """The labels that the model's own head has outputs for; None where it has none."""
        held = self.dataset.parts[self.widest or ""] if isinstance(self.dataset, SeveralSets) else self.dataset
        return held.labels if self.form == held.task else None

    def example(self) -> dict[str, Tensor]:
        """A small batch, as the model itself takes it."""
        assert self.material is not None
        return self.task.inputs(self.backbone.model, move(self.task.collate(self.material.train[:2]), self.processes.device))

    def batches(self, task: Task, examples: list[dict[str, Any]]) -> Iterator[dict[str, Tensor]]:
        """Encoded rows, in batches that are made when a method asks for the next one; of several tasks those of the widest."""
        rows, size = [example for example in examples if example.get("task") == self.widest], self.settings.batch
        for start in range(0, len(rows), size):
            batch = move(task.collate(rows[start : start + size]), self.processes.device)
            yield {key: value for key, value in batch.items() if isinstance(value, Tensor)}

    def identify(self) -> dict[str, Any]:
        """What a resumed training must share with the one that it goes on from."""
        assert self.at is not None
        sums = digests(base_tensors(self.at.model, frozenset(n for n in self.at.base if n not in self.at.masks)).items())
        base = hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
        return {"config": self.config, "data": self.dataset.record["content"], "base model": base[:16],
                "processes": {"count": self.processes.world, "kind": self.processes.kind}}

    def save(self, folder: Path) -> Path:
        """Write the adapter. Where weights are spread over processes all must take part; only the main one keeps its copy."""
        assert self.at is not None
        about: dict[str, Any] = {
            "task": self.task.name, "form": self.form, "labels": self.task.labels, "limits": self.task.limits,
            "metric": self.task.metric, "columns": self.dataset.columns, "model": self.backbone.source.get("id"),
            "weights": self.settings.weights, "image": self.backbone.source.get("image")}
        if self.processes.main:
            artifact.save(self.at, folder, **about)
        elif self.processes.sharded:
            with tempfile.TemporaryDirectory() as spare:
                artifact.save(self.at, Path(spare) / "adapter", **about)
        self.processes.wait()
        return folder

    def count(self) -> dict[str, int]:
        """Numbers in the base, and trained ones in the method and in the head."""
        assert self.at is not None
        found, head = self.at.summary(), sum(p.numel() for p in head_of(self.at, self.task))
        return {"base": found.base, "tuner": found.trainable - head, "head": head}


def recompute(model: nn.Module) -> None:
    """Gradient checkpointing, in the form that does not lose gradients behind frozen layers.

    Raises:
        NoSuchSetting: the model does not offer it.
    """
    enable = getattr(model, "gradient_checkpointing_enable", None)
    if enable is None:
        raise NoSuchSetting(f"checkpointing: {type(model).__name__} has no gradient_checkpointing_enable; train it without")
    try:
        enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except (ValueError, TypeError, AttributeError) as error:
        raise ThriftyError(f"checkpointing: {type(model).__name__} does not support it ({error}); train it without") from None

"""One stage: a student learns the affinities of its teacher, and perhaps what of itself it can do without."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.clip.contrast import contrastive_loss
from thrifty.core.errors import BadData
from thrifty.tasks.contrastive import Contrastive
from thrifty.tasks.task import Batch
from thrifty.tinyclip.affinity import affinity_loss
from thrifty.tinyclip.masks import Masks
from thrifty.tinyclip.pruning import prune
from thrifty.tinyclip.settings import Distilling
from thrifty.tinyclip.sparsity import Lagrangian, ramp, sparsity
from thrifty.train.order import Order
from thrifty.train.schedule import share

HOTTEST = math.log(100)     # of the logarithm of the scale
UNDECAYED = ("bias", "logit_scale", "norm")
Note = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Seen:
    """What a teacher makes of all training rows: ``images`` [n, d], ``texts`` (of each row [captions, d]), and its scale."""

    images: Tensor
    texts: list[Tensor]
    scale: float


def ask(task: Contrastive, teacher: Any, examples: Sequence[dict[str, Any]], batch: int) -> Seen:
    """The teacher's unit features. Nothing varies what it sees, so once is enough for all epochs and stages."""
    device = next(teacher.parameters()).device
    images: list[list[float]] = []
    texts: list[Tensor] = []
    for start in range(0, len(examples), batch):
        held = to(task.collate(examples[start : start + batch]), device)
        for row in task.predict(teacher, held):
            images.append(row["image"])
            texts.append(torch.tensor(row["captions"], device=device))
    return Seen(torch.tensor(images, device=device), texts, float(teacher.logit_scale.detach().exp()))


class Stage:
    """The training of one student.

    Args:
        target: the share of the numbers in its blocks that the student shall lose, or None where its size is as it shall be.
    """

    def __init__(self, task: Contrastive, student: Any, seen: Seen, examples: Sequence[dict[str, Any]], settings: Distilling,
                 target: float | None = None, seed: int = 0) -> None:
        self.task, self.student, self.seen, self.examples = task, student, seen, list(examples)
        self.settings, self.target, self.seed = settings, target, seed
        self.order = Order(len(self.examples), settings.batch, seed)
        self.steps = math.ceil(settings.epochs * self.order.per_epoch)
        settings.check_steps(self.steps, target is not None)
        self.device = next(student.parameters()).device
        towers = [student.vision_model, student.text_model] if target is not None else []
        self.masks = [Masks(tower, settings.gated()).to(self.device) for tower in towers]
        self.lagrangian = Lagrangian(len(towers)).to(self.device) if towers else None
        self.optimizer = optimizer_of(student, settings)
        gates = [p for masks in self.masks for p in masks.parameters()]
        multipliers = list(self.lagrangian.parameters()) if self.lagrangian else []
        self.others = [torch.optim.Adam(gates, settings.gate_rate), torch.optim.Adam(multipliers, settings.gate_rate, maximize=True)
                       ] if gates else []

    def run(self, note: Note = lambda said: None) -> None:
        """Train to the end; at ``prune_at`` what the gates closed is cut out.

        Raises:
            BadData: the loss is no longer finite.
        """
        with torch.no_grad():
            self.student.logit_scale.fill_(math.log(self.settings.scale))
        self.student.train()
        with torch.random.fork_rng(devices=[]), ExitStack() as acting:
            torch.manual_seed(self.seed)
            for masks in self.masks:
                acting.enter_context(masks.acting())
            for step in range(self.steps):
                said = self.learn(step)
                if not math.isfinite(said["loss"]):
                    raise BadData(f"the loss is no longer finite at step {step + 1}: lower the rate ({self.settings.rate})")
                if step + 1 == self.settings.prune_at and self.masks:
                    acting.close()
                    said["pruned"] = self.cut()
                note({"step": step + 1, **said})
        self.student.eval()

    def learn(self, step: int) -> dict[str, Any]:
        """One step; what it was like."""
        rows = self.order.step(step)
        varied = self.task.vary([self.examples[row] for row in rows], self.seed, step)
        batch = to(self.task.collate(varied), self.device)
        for masks in self.masks:
            masks.clamp()
            masks.draw()
        found = self.student(**self.task.inputs(self.student, batch))
        loss = self.weigh(found, self.seen.images[rows], torch.stack([self.seen.texts[one["row"]][one["said"]] for one in varied]))
        said: dict[str, Any] = {"distance": float(loss.detach())}
        if self.masks and self.lagrangian is not None and self.target is not None:
            target = ramp(self.target, step, self.settings.sparsity_warm_up)
            loss = loss + self.lagrangian(self.masks, target, self.settings.joint)
            said |= {"sparsity": float(sparsity(self.masks).detach()), "target": target}
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate * share(step, self.steps, self.settings.warm_up / self.steps, "cosine")
        optimizers = [self.optimizer, *self.others]
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.clip)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            self.student.logit_scale.clamp_(0, HOTTEST)
        return {"loss": float(loss.detach()), **said, "rate": self.optimizer.param_groups[0]["lr"]}

    def weigh(self, found: Any, images: Tensor, texts: Tensor) -> Tensor:
        """alpha w L + (1 - alpha) w L_CLIP, of the student's answers and the teacher's features of the same pairs."""
        own = self.settings
        soft = affinity_loss(found["image_embeds"], found["text_embeds"], self.student.logit_scale.exp(), images, texts,
                             self.seen.scale)
        if own.alpha == 1:
            return own.weight * soft
        return own.weight * (own.alpha * soft + (1 - own.alpha) * contrastive_loss(found["logits_per_image"]))

    def cut(self) -> dict[str, int]:
        """Settle the gates and prune; from here on there are none. How many numbers the student has left."""
        for masks in self.masks:
            masks.clamp()
            masks.settle()
        prune(self.student, self.masks)
        self.masks, self.others = [], []
        self.optimizer = optimizer_of(self.student, self.settings)
        return {"parameters": sum(p.numel() for p in self.student.parameters())}


def optimizer_of(student: nn.Module, settings: Distilling) -> torch.optim.Optimizer:
    """AdamW over all weights of the student; vectors, biases, norms and the scale do not decay."""
    named = list(student.named_parameters())
    flat = [p for name, p in named if p.dim() < 2 or any(word in name for word in UNDECAYED)]
    known = {id(p) for p in flat}
    return torch.optim.AdamW([{"params": [p for _, p in named if id(p) not in known], "weight_decay": settings.decay},
                              {"params": flat, "weight_decay": 0.0}], lr=settings.rate, betas=(0.9, 0.98), eps=1e-6)


def to(batch: Batch, device: torch.device) -> Batch:
    """A batch on a device."""
    return {key: value.to(device) for key, value in batch.items()}

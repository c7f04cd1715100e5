"""What the promises of the contract are made of: put a method on a copy, give it other values, train it a little, compare."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core import Attachment, Method, attach
from ..core.errors import Unfit
from ..core.routing import tell
from .tiny import Tiny

TASKS = ("one", "two")  # what a method that tells tasks apart is tested with


def put(method: Method, backbone: Tiny, name: str = "default", seed: int | None = 0) -> tuple[nn.Module, Attachment]:
    """A fresh copy of the backbone with ``method`` attached, and the handle."""
    model = backbone.fresh()
    return model, add(method, backbone, model, name, seed)


def add(method: Method, backbone: Tiny, model: nn.Module, name: str = "default", seed: int | None = 0) -> Attachment:
    """The handle of ``method`` attached to ``model``; if it tells tasks apart, the batches to come are of the first."""
    at = attach(model, method, name=name, example=backbone.example, batches=backbone.lessons(), seed=seed,
                tasks=TASKS if method.multitask else ())
    if method.multitask:
        tell(model, TASKS[0])
    return at


@torch.no_grad()
def stir(at: Attachment, seed: int = 1, size: float = 0.1) -> None:
    """Move every number that ``at`` trains by noise of standard deviation ``size``, where its mask lets it.

    Of an attachment in which nothing trains it is every number that its edits hold.
    """
    generator = torch.Generator().manual_seed(seed)
    held = [(n, b) for e in at.edits.values() for n, b in e.named_buffers() if b.is_floating_point()]
    for name, p in list(at.named_parameters()) or held:
        noise = size * torch.randn(p.shape, generator=generator)
        mask = at.masks.get(name.removeprefix("base:"))
        p.add_((noise if mask is None else noise * mask.cpu()).to(p))


def weigh(out: Tensor) -> Tensor:
    """A scalar in which every entry of ``out`` has a weight of its own, so that nothing cancels."""
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    return (out.float() * weights).sum()


def descend(loss: Tensor) -> None:
    """Gradients of ``loss``, if anything trains; whether all that must has got one is for the caller to ask."""
    if loss.requires_grad:
        loss.backward()


def loss(backbone: Tiny, model: nn.Module) -> Tensor:
    """``weigh`` of what the model answers to the example."""
    return weigh(backbone.logits(backbone.run(model)))


@dataclass(frozen=True)
class Weighed:
    """Stands for a task: its loss is ``weigh`` of what is answered to the example, and every row is of class 0."""

    name: ClassVar[str] = "a task of the contract"
    backbone: Tiny

    def batch(self) -> dict[str, Any]:
        """The example with labels, as a task would make it."""
        example = self.backbone.example
        given = example if isinstance(example, dict) else {"example": example if isinstance(example, Tensor) else example[0]}
        return {**given, "labels": torch.zeros(len(next(iter(given.values()))), dtype=torch.long)}

    def inputs(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch without its labels."""
        return {name: value for name, value in batch.items() if name != "labels"}

    def view(self, batch: dict[str, Any]) -> None:
        """The batch holds no second view."""

    def loss(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, int]:
        """``weigh`` of what ``model`` answers, and the number of rows."""
        return loss(self.backbone, model), len(batch["labels"])


def own_loss(backbone: Tiny, model: nn.Module, at: Attachment) -> Tensor:
    """What the method itself makes of ``loss``; ``loss`` where it asks for a task that no random answer can stand for."""
    assert at.method is not None
    task = Weighed(backbone)
    try:
        return at.method.loss(at, task, model, task.batch())[0]
    except Unfit:
        return loss(backbone, model)


def step(method: Method, at: Attachment, backbone: Tiny, model: nn.Module, steps: int, rate: float = 0.05) -> None:
    """Train for a few steps, with weight decay and with all that the method asks of a training loop."""
    optimiser = torch.optim.AdamW(method.groups(at, rate, 0.1))
    for i in range(steps):
        optimiser.zero_grad()
        (own_loss(backbone, model, at) + method.penalty(at)).backward()
        optimiser.step()
        method.step(at, i + 1, steps)


def distance(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of ``b``."""
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-12))


def equal(a: Tensor, b: Tensor) -> bool:
    """Same shape, precision and bits; NaN equals itself."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(0), b.nan_to_num(0)) \
        and torch.equal(a.isnan(), b.isnan())


def gradients(at: Attachment) -> dict[str, Tensor]:
    """The gradients that there are, by name."""
    return {n: p.grad.clone() for n, p in at.named_parameters() if p.grad is not None}


def alike(a: dict[str, Tensor], b: dict[str, Tensor], what: str) -> None:
    """Hold two sets of gradients to equality within rounding.

    Raises:
        AssertionError: saying ``what`` was compared and which gradient differs.
    """
    assert a.keys() == b.keys(), f"{what}: gradients reach other tensors: {sorted(a.keys() ^ b.keys())[:5]}"
    size = max((float(g.abs().max()) for g in b.values()), default=0.0)  # some are zero but for rounding
    wrong = [n for n in a if distance(a[n], b[n]) > 1e-3 and float((a[n] - b[n]).abs().max()) > 1e-5 * size]
    assert not wrong, f"{what}: other gradients for {wrong[:5]}"


def same(a: Tensor, b: Tensor, what: str) -> None:
    """Hold two outputs to equality, bit for bit.

    Raises:
        AssertionError: saying ``what`` was compared and how far apart the two are.
    """
    assert equal(a, b), f"{what}: not the same output (largest difference {float((a.double() - b.double()).abs().max()):.1e})"

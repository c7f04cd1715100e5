"""Small classifiers of pictures and a task for them, for the tests of methods that train on more than the task's loss."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers as hf
from backbones import tiny
from torch import Tensor, nn

import thrifty
from thrifty.core import Attachment, Method
from thrifty.models import wrap
from thrifty.tasks.image_classification import ImageClassification

CLASSES, SOURCE = 3, 5


def prepare(picture: Any) -> Tensor:
    """Never asked here: the batches are tensors already."""
    raise AssertionError


def network(kind: str = "resnet", classes: int = CLASSES, **config: Any) -> Any:
    """A tiny classifier with numbers that hide nothing behind a zero, and statistics of its own."""
    model = tiny(kind, num_labels=classes, **config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
            elif "classifier" in name:
                p.copy_(torch.randn(p.shape, generator=generator) / p.shape[1] ** 0.5)
    return model.double()


def batch(rows: int = 6, seed: int = 0, side: int = 32) -> dict[str, Tensor]:
    """Pictures and class numbers, all classes among them."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(rows, 3, side, side, generator=generator, dtype=torch.float64)
    return {"pixel_values": pixels, "labels": torch.arange(rows) % CLASSES}


def task(model: nn.Module, classes: int = CLASSES) -> ImageClassification:
    """Image classification by ``model``, whose inputs are ready."""
    return ImageClassification(wrap(model, prepare), [f"c{i}" for i in range(classes)])


def attach(model: nn.Module, method: Method, side: int = 32, **more: Any) -> Attachment:
    """``method`` on ``model``, whose head is new."""
    return thrifty.attach(model, method, also_train="head", example={"pixel_values": batch(2, side=side)["pixel_values"]}, **more)


def batches(count: int = 2, rows: int = 6) -> Iterator[dict[str, Tensor]]:
    """Several batches, as training gives them to methods that look before they decide."""
    return iter([batch(rows, seed) for seed in range(count)])


def old_head(width: int = 16) -> dict[str, Tensor]:
    """A classifier that the source was trained with, by the names of the tiny ResNet's."""
    generator = torch.Generator().manual_seed(9)
    return {"classifier.1.weight": torch.randn(SOURCE, width, generator=generator),
            "classifier.1.bias": torch.randn(SOURCE, generator=generator)}


def source_logits(model: Any, given: dict[str, Tensor]) -> Tensor:
    """What the source head says of a batch, by the tiny ResNet's own parts."""
    f = model.resnet(given["pixel_values"]).pooler_output.flatten(1)
    return f @ old_head()["classifier.1.weight"].double().T + old_head()["classifier.1.bias"].double()


def resnet50(classes: int | None = None) -> Any:
    """The published ResNet-50 without numbers; without ``classes`` it has no head."""
    with torch.device("meta"):
        if classes is None:
            return hf.ResNetModel(hf.ResNetConfig())
        return hf.ResNetForImageClassification(hf.ResNetConfig(num_labels=classes))


def steps(at: Attachment, method: Method, its_task: Any, count: int = 3, rate: float = 1e-2,
          side: int = 32) -> list[float]:
    """Train for a few steps by the method's own loss, penalty, groups and step; the losses."""
    model, losses = at.model, []
    optimiser = torch.optim.AdamW(method.groups(at, rate, 0.1))
    for i in range(count):
        model.train()
        optimiser.zero_grad()
        loss, rows = method.loss(at, its_task, model, batch(seed=i, side=side))
        assert rows == 6
        total = loss + method.penalty(at)
        total.backward()
        optimiser.step()
        method.step(at, i + 1, count)
        losses.append(float(total))
    return losses

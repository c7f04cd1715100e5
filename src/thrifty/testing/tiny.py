"""Tiny random backbones, one per family, with a batch to run them on: small enough that a whole contract runs in a second.

    tiny = make("bert")
    model = tiny.fresh()                  # a new copy of the same seeded model, in eval mode
    y = tiny.logits(tiny.run(model))

Every number of a backbone is random, biases, norms and running statistics too, so that nothing hides behind a zero.
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core.errors import Missing, NoSuchSetting, nearest
from ..core.hooks import main
from ..navigation.agent import Agent
from ..navigation.config import AgentConfig
from . import stock
from .zoo import HUGGING_FACE

Example = Tensor | tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True)
class Tiny:
    """A backbone under test: how to get a copy of it, a batch it takes, and how to read one tensor from its answer."""

    name: str
    model: nn.Module = field(repr=False)
    example: Example = field(repr=False)
    logits: Callable[[Any], Tensor] = main

    def fresh(self) -> nn.Module:
        """A copy of the model, in eval mode; all copies are equal."""
        return copy.deepcopy(self.model).eval()

    def run(self, model: nn.Module) -> Any:
        """What ``model`` (a copy, edited or compiled) answers to the example."""
        if isinstance(self.example, dict):
            return model(**self.example)
        return model(*self.example) if isinstance(self.example, tuple) else model(self.example)

    def output(self, model: nn.Module) -> Tensor:
        """The logits that ``model`` answers, without gradients."""
        with torch.no_grad():
            return self.logits(self.run(model))

    def lessons(self) -> Iterator[dict[str, Any]]:
        """One batch with labels, for methods that look at data before they decide; none where the example is not by name."""
        if isinstance(self.example, dict):
            shape = self.output(self.model).shape
            yield {**self.example, "labels": torch.arange(shape[:-1].numel()).view(shape[:-1]) % shape[-1]}

    def to(self, dtype: torch.dtype) -> Tiny:
        """The same backbone and batch in another floating-point precision."""
        def cast(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        example = {k: cast(v) for k, v in self.example.items()} if isinstance(self.example, dict) else \
            tuple(map(cast, self.example)) if isinstance(self.example, tuple) else cast(self.example)
        return Tiny(self.name, copy.deepcopy(self.model).to(dtype), example, self.logits)


NAMES: tuple[str, ...] = (*HUGGING_FACE, *stock.TIMM, "open_clip", "image_text", "agent", *stock.TORCH)


@cache
def make(name: str, seed: int = 0) -> Tiny:
    """The backbone called ``name`` (one of ``NAMES``), with numbers drawn from ``seed``; the global state is left alone.

    Raises:
        NoSuchSetting: there is no such name.
        Missing: it needs a package that cannot be imported.
    """
    if name not in NAMES:
        raise NoSuchSetting(f"unknown tiny backbone {name!r}." + nearest(name, NAMES, 60))
    read: Callable[[Any], Tensor]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if name in HUGGING_FACE:
            model, kind, read = _hugging_face(name), HUGGING_FACE[name][3], main
        else:
            model, kind, read = stock.build(name)
        _randomise(model)
        return Tiny(name, model.eval(), _example(kind), read)


def _hugging_face(name: str) -> nn.Module:
    try:
        import transformers
    except ImportError as error:
        raise Missing(f"{name!r} needs the package transformers: {error}") from None
    model, config, numbers, _ = HUGGING_FACE[name]
    made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**numbers))
    return made


@torch.no_grad()
def _randomise(model: nn.Module) -> None:
    for p in model.parameters():
        if p.dim() > 1:
            p.normal_(std=p[0].numel() ** -0.5)
        else:
            p.add_(0.1 * torch.randn_like(p))
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)


def _example(kind: str) -> Example:
    ids = torch.randint(3, 60, (2, 7))
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    image = torch.randn(2, 3, 32, 32)
    kinds: dict[str, Callable[[], Example]] = {
        "text": lambda: {"input_ids": ids, "attention_mask": mask},
        "seq2seq": lambda: {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :4].contiguous()},
        "image": lambda: {"pixel_values": image},
        "pictures": lambda: {"pixel_values": torch.randn(3, 3, 32, 32)},  # as many as there are classes
        "pair": lambda: {"input_ids": ids, "pixel_values": image},
        "speech": lambda: {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": ids[:, :4].contiguous()},
        "tensor": lambda: image,
        "towers": lambda: (image, torch.cat([ids, ids, torch.full((2, 2), 63)], 1)),
        "sequence": lambda: {"src": torch.randn(2, 7, 16), "src_key_padding_mask": mask == 0},
        "tokens": lambda: (ids, mask == 0),
        "walk": lambda: Agent(AgentConfig(**stock.AGENT)).example(),
    }
    return kinds[kind]()

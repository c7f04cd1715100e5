"""Small random classifiers of pictures, and zoos of them."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from thrifty.testing import tiny
from thrifty.testing.tiny import Tiny
from thrifty.zoo import Zoo, gather

SIDE = 32


def pictures(count: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def drawn(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A model whose numbers are random, statistics of batch norms too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        tiny._randomise(model)
    return model.eval()


def resnet(seed: int = 0, depths: tuple[int, ...] = (2, 2), widths: tuple[int, ...] = (16, 32), kind: str = "basic") -> nn.Module:
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=list(widths), depths=list(depths), layer_type=kind, num_labels=3)
    return drawn(lambda: hf.ResNetForImageClassification(config), seed)


def vit(seed: int = 0, layers: int = 4, width: int = 16) -> nn.Module:
    config = hf.ViTConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32, image_size=SIDE,
                          patch_size=8, num_labels=3)
    return drawn(lambda: hf.ViTForImageClassification(config), seed)


def mobilenet(seed: int = 0) -> nn.Module:
    config = hf.MobileNetV2Config(depth_multiplier=0.25, image_size=SIDE, num_labels=3)
    return drawn(lambda: hf.MobileNetV2ForImageClassification(config), seed)


def zoo(*models: nn.Module, outputs: int = 3, seed: int = 0) -> Zoo:
    """They lose their heads; called a, b, c, ..."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return gather(models, list("abcdefgh")[: len(models)], outputs)


def lessons(count: int = 16, size: int = 8, seed: int = 5) -> list[dict[str, Any]]:
    """Batches of pictures with classes."""
    pixels, labels = pictures(count, seed), torch.arange(count) % 3
    return [{"pixel_values": pixels[i : i + size], "labels": labels[i : i + size]} for i in range(0, count, size)]


def backbone(model: Zoo) -> Tiny:
    """As the contract takes it."""
    return Tiny("a zoo", model, {"pixel_values": pictures(2, 3)})

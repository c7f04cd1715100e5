"""What decides the weights of `vit-mini`, in one place: it is written into every checkpoint and beside the result."""
from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

SIDE = 32   # pixels
PATCH = 4


@dataclass(frozen=True)
class Recipe:
    """A Vision Transformer (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929) that learns three sets and a teacher at once.

    ``batch`` says how many pictures of each set are in every step. ``distil`` weighs the teacher's features against the labels.
    """

    seed: int = 0
    steps: int = 4800
    batch: dict[str, int] = field(default_factory=lambda: {"cifar10": 96, "mnist": 16, "fashion_mnist": 16})
    width: int = 192
    depth: int = 6
    heads: int = 3
    rate: float = 1e-3
    decay: float = 0.05
    warmup: float = 0.05
    clip: float = 1.0
    smoothing: float = 0.1
    distil: float = 2.0
    teacher: str = "mobilenetv2"
    teacher_side: int = 128
    held: int = 1000            # training pictures of each set that are never trained on, to watch progress

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


TAUGHT = "cifar10"  # the set that the teacher has seen

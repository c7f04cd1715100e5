"""Random state: set from a seed, written down, put back."""
from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """The caller's random state is after the block as it was before."""
    python, numpy, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(tensors)
        if devices:
            torch.cuda.set_rng_state_all(devices)


def sow(seed: int, rank: int = 0) -> None:
    """Seed every source; processes differ, so that their dropout does."""
    mixed = (seed * 1_000_003 + rank * 7919) % (1 << 32)
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)


def write_down(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of every source: tensors, and plain JSON."""
    version, words, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    return tensors, {"python": [version, list(words), gauss], "numpy": [kind, int(place), int(has_gauss), float(cached)]}


def put_back(tensors: dict[str, Tensor], plain: dict[str, Any], device: torch.device) -> None:
    """The opposite of ``write_down``."""
    version, words, gauss = plain["python"]
    random.setstate((version, tuple(words), gauss))
    kind, place, has_gauss, cached = plain["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), place, has_gauss, cached))
    torch.set_rng_state(tensors["torch"].contiguous())
    if "cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda"].contiguous(), device)

"""Key: everything that states at a place depend on, so that a store is used for that and for nothing else."""
from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thrifty.artifact.files import canonical, sha256
from thrifty.trunk.cut import Place, when
from thrifty.trunk.timeline import Timeline


def folder() -> Path:
    """Where stores lie: what THRIFTY_CACHE says, else a folder of the user's cache; in it ``trunk``."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("THRIFTY_CACHE") or Path(home) / "thrifty") / "trunk"


def describe(timeline: Timeline, place: Place, sums: Mapping[str, str], **more: Any) -> dict[str, Any]:
    """What the states at ``place`` depend on, as plain data: the frozen tensors that can have a part in them, by the checksums
    ``sums`` of all, and whatever else is said."""
    reached = when(timeline, place)
    below = {name: one for name, one in sums.items() if timeline.began(name.rpartition(".")[0]) < reached}
    return {"version": 1, "model": type(timeline.model).__name__, "place": [place.port, place.path],
            "tensors": sha256(canonical(below)), **more}


def name(about: Mapping[str, Any]) -> str:
    """The name of the file that holds the states of what is described."""
    return sha256(canonical(dict(about)))[:32] + ".safetensors"


def digest_rows(batches: Iterable[Mapping[str, Any]]) -> str:
    """A checksum of what the model is given, row by row."""
    sums = hashlib.sha256()
    for batch in batches:
        for key in sorted(batch):
            if isinstance(value := batch[key], Tensor):
                sums.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
                sums.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sums.hexdigest()


def digest_pictures(examples: Sequence[Mapping[str, Any]]) -> str:
    """A checksum of pictures as they lie on disk or in memory."""
    sums = hashlib.sha256()
    for example in examples:
        picture = example["image"]
        if isinstance(picture, bytes | str | Path):
            data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        else:
            data = f"{picture.mode}{picture.size}".encode() + picture.tobytes()
        sums.update(hashlib.sha256(data).digest())
    return sums.hexdigest()

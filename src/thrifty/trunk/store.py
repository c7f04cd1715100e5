"""Store: the states of one place for many rows, in one safetensors file that is written from front to back and read in place.

How many tokens all rows have need not be known before: the header has its room kept free and is written last. Then the file
gets its name. It holds ``states`` [tokens, ...], for int8 their ``scales``, and where each row's ``starts`` are and their
``lengths``; beside them stand what the states depend on, a checksum of the data, and what packing lost.
"""
from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thrifty.artifact.files import canonical, read_header
from thrifty.core.errors import BrokenArtifact, Unfit
from thrifty.trunk.packing import pack, unpack

HEADER = 1 << 13
NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8",
         torch.int64: "I64"}
KINDS = {name: dtype for dtype, name in NAMES.items()}
PIECE = 1 << 24


class Writer:
    """A store in the making. ``about`` is what the states depend on, ``rows`` how many pieces will come, in any order."""

    def __init__(self, path: Path, about: dict[str, Any], rows: int, precision: str) -> None:
        self.path, self.about, self.precision = path, about, precision
        self.partial = path.with_name(f".{path.name}.{os.getpid()}")
        self.starts, self.lengths = torch.full((rows,), -1), torch.zeros(rows, dtype=torch.int64)
        self.scales: list[Tensor] = []
        self.tokens, self.checksum, self.apart, self.whole = 0, 0, 0.0, 0.0
        self.shape: tuple[int, ...] = ()
        self.kind = self.dtype = torch.float32
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.partial.open("wb")
        self.file.write(b" " * HEADER)

    def add(self, numbers: Sequence[int], pieces: Sequence[Tensor]) -> None:
        """The states of rows with these ``numbers``, each [tokens, ...].

        Raises:
            Unfit: see `pack`.
        """
        states = torch.cat(list(pieces))
        packed, scales = pack(states, self.precision)
        self.shape, self.kind, self.dtype = tuple(packed.shape[1:]), packed.dtype, states.dtype
        self._append(packed)
        if self.precision != "exact":
            self.apart += float((unpack(packed, scales, torch.float64) - states.double()).square().sum())
            self.whole += float(states.double().square().sum())
        if scales is not None:
            self.scales.append(scales)
        for number, piece in zip(numbers, pieces, strict=True):
            self.starts[number], self.lengths[number] = self.tokens, len(piece)
            self.tokens += len(piece)

    def close(self) -> None:
        """Write the header, and give the file its name."""
        assert bool((self.starts >= 0).all()), "every row has been added"
        tensors = {"starts": self.starts, "lengths": self.lengths}
        if self.scales:
            tensors = {"scales": torch.cat(self.scales), **tensors}
        end = self.file.tell() - HEADER
        header: dict[str, Any] = {"states": _entry(self.kind, (self.tokens, *self.shape), 0, end)}
        for name, tensor in tensors.items():
            header[name] = _entry(tensor.dtype, tuple(tensor.shape), end, end := end + tensor.numel() * tensor.itemsize)
            self._append(tensor)
        lost = (self.apart / self.whole) ** 0.5 if self.whole else 0.0
        header["__metadata__"] = {"about": canonical(self.about).decode(), "checksum": f"{self.checksum:08x}", "lost": repr(lost),
                                  "dtype": NAMES[self.dtype]}
        text = json.dumps(header).encode()
        assert len(text) <= HEADER - 8, "what a store depends on is said in few words"
        self.file.seek(0)
        self.file.write((HEADER - 8).to_bytes(8, "little") + text.ljust(HEADER - 8))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.partial, self.path)

    def discard(self) -> None:
        """Leave nothing behind of a store that was not finished."""
        self.file.close()
        with contextlib.suppress(FileNotFoundError):
            self.partial.unlink()

    def _append(self, tensor: Tensor) -> None:
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        self.checksum = zlib.crc32(data, self.checksum)
        self.file.write(data)


class Store:
    """A finished one, of which only what is asked for is read.

    Raises:
        BrokenArtifact: the file is damaged, or is of something else than ``about``.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        remedy = f"delete it, and it is made anew: rm {path}"
        try:
            header = read_header(path)
            said = header.pop("__metadata__")
            found = json.loads(said["about"])
            self.dtype, self.lost, checksum = KINDS[said["dtype"]], float(said["lost"]), int(said["checksum"], 16)
            entries = {name: (KINDS[one["dtype"]], one["shape"], one["data_offsets"][0]) for name, one in header.items()}
            missing = {"states", "starts", "lengths"} - entries.keys()
        except BrokenArtifact as error:
            raise BrokenArtifact(f"{error}; {remedy}") from None
        except (KeyError, ValueError, TypeError, AttributeError, IndexError):
            raise BrokenArtifact(f"{path} is no store of states; {remedy}") from None
        if missing:
            raise BrokenArtifact(f"{path} lacks {', '.join(sorted(missing))}; {remedy}")
        if found != json.loads(canonical(about)):
            differ = [key for key in {**about, **found} if about.get(key) != found.get(key)]
            raise BrokenArtifact(f"{path} holds states of something else (its {' and '.join(map(str, differ))} differ); {remedy}")
        self.path = path
        with path.open("rb") as file:
            self.bytes = path.stat().st_size
            self.base = 8 + int.from_bytes(file.read(8), "little")
            file.seek(self.base)
            if _checksum(file) != checksum:
                raise BrokenArtifact(f"{path} is not what was written: its contents do not match their checksum; {remedy}")
            self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.states = self._view(*entries["states"])
        self.scales = self._view(*entries["scales"]) if "scales" in entries else None
        self.starts, self.lengths = (self._view(*entries[name]).tolist() for name in ("starts", "lengths"))

    def take(self, numbers: Sequence[int]) -> tuple[Tensor, list[int]]:
        """The states of these rows, one after the other [sum of lengths, ...], and their lengths."""
        spans = [slice(self.starts[i], self.starts[i] + self.lengths[i]) for i in numbers]
        packed = torch.cat([self.states[span] for span in spans])
        scales = None if self.scales is None else torch.cat([self.scales[span] for span in spans])
        return unpack(packed, scales, self.dtype), [self.lengths[i] for i in numbers]

    def _view(self, dtype: torch.dtype, shape: Sequence[int], start: int) -> Tensor:
        count = 1
        for side in shape:
            count *= side
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the memory is not writable, and nobody writes to it
            octets = torch.frombuffer(self.memory, dtype=torch.uint8, count=count * dtype.itemsize, offset=self.base + start)
            aligned = octets if (self.base + start) % dtype.itemsize == 0 else octets.clone()
            return aligned.view(dtype).reshape(*shape)


def refuse_full(folder: Path, size: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        Unfit: saying how much is needed, and how much there is.
    """
    free = free_bytes(folder)
    if size > free:
        raise Unfit(f"the states of the frozen part take {size:,} bytes, and the disk of {folder} has {free:,} free: store "
                           "them in float16 or int8 (cache_as), on another disk (the variable THRIFTY_CACHE), or train without")


def free_bytes(folder: Path) -> int:
    """What is free on the disk that ``folder`` lies on, or will lie on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _entry(dtype: torch.dtype, shape: tuple[int, ...], start: int, end: int) -> dict[str, Any]:
    return {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}


def _checksum(file: Any) -> int:
    found = 0
    while piece := file.read(PIECE):
        found = zlib.crc32(piece, found)
    return found

"""Machine: how fast this one computes and moves memory, and from that how long work takes."""
from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from thrifty.planning.work import Operation, Work
from thrifty.train.environment import processor
from thrifty.train.files import read_json, write_json
from thrifty.trunk import key

VERSION = 2
Rates = list[tuple[float, float]]  # (size, amount per second), by size


@dataclass(frozen=True)
class Machine:
    """``about`` says which, ``call`` is the time in seconds that any operation takes, and ``rates`` are floating-point operations
    or bytes per second, by kind of operation and number format, for some sizes."""

    about: dict[str, Any]
    call: float
    rates: dict[str, Rates]

    def seconds(self, work: Work) -> float:
        """How long the work takes."""
        return math.fsum(self._time(operation) * times for operation, times in work.operations.items())

    def _time(self, operation: Operation) -> float:
        if operation.kind == "call":
            return self.call
        if not operation.flops:
            return self.call + operation.bytes / self._rate(operation.kind, "", operation.bytes)
        moving = operation.bytes / self._rate("move", "", operation.bytes)  # rates of products are of numbers that lie in caches
        return self.call + moving + operation.flops / self._rate(operation.kind, operation.dtype, operation.narrow)

    def _rate(self, kind: str, dtype: str, size: float) -> float:
        known = self.rates.get(f"{kind} {dtype}".strip()) or self.rates[f"{kind} float32".strip()]
        return between(known, size)


def between(known: Rates, size: float) -> float:
    """The rate at ``size``: on the line between those of the nearest sizes, over logarithms; that of the end beyond the ends."""
    if size <= known[0][0]:
        return known[0][1]
    for (low, slow), (high, fast) in pairwise(known):
        if size <= high:
            share = math.log(size / low) / math.log(high / low)
            return math.exp((1 - share) * math.log(slow) + share * math.log(fast))
    return known[-1][1]


def describe(device: torch.device) -> dict[str, Any]:
    """What decides how fast this machine is."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {"version": VERSION, "device": device.type, "name": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def place(about: dict[str, Any]) -> Path:
    """The file in the user's cache that holds what was measured of a machine."""
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return key.folder().with_name("machines") / f"{name}.json"


def recall(device: torch.device) -> Machine | None:
    """What was measured of this machine before, if it was.

    Raises:
        BrokenArtifact: the file cannot be read.
    """
    path = place(about := describe(device))
    if not path.is_file():
        return None
    held = read_json(path)
    return Machine(about, held["call"], {kind: [(size, rate) for size, rate in rates] for kind, rates in held["rates"].items()})


def remember(machine: Machine) -> Path:
    """Write down what was measured, and where."""
    path = place(machine.about)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(machine))
    return path

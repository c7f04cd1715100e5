"""On what a run ran: everything that may explain another number elsewhere."""
from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from thrifty.train.precision import Precision
from thrifty.train.processes import Processes

PACKAGES = ("torch", "transformers", "numpy", "safetensors", "tokenizers", "accelerate")


def environment(processes: Processes, precision: Precision) -> dict[str, Any]:
    """Plain JSON."""
    from thrifty import __version__

    found = {"thrifty": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    cuda = processes.device.type == "cuda"
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
    return {
        "python": platform.python_version(), "platform": platform.platform(), "packages": found,
        "processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "device": str(processes.device), "devices": devices, "cuda": torch.version.cuda if cuda else None,
        "processes": {"count": processes.world, "kind": processes.kind},
        "precision": {"name": precision.name, "why": precision.why},
        "deterministic": processes.device.type == "cpu",
    }


def processor() -> str:
    """The processor's name as the system tells it."""
    if sys.platform == "linux":
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        except (OSError, StopIteration):
            pass
    return platform.processor() or platform.machine()

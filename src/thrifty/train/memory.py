"""The most memory that was held at once."""
from __future__ import annotations

import sys
from typing import Any

import torch


def peak(device: torch.device) -> dict[str, Any]:
    """On an accelerator what was allocated there, else what was resident in this process."""
    if device.type == "cuda":
        return {"peak_bytes": int(torch.cuda.max_memory_allocated(device)), "kind": "device"}
    try:
        import resource
    except ImportError:  # not on Windows
        return {"peak_bytes": None, "kind": "process"}
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_bytes": int(most) * (1 if sys.platform == "darwin" else 1024), "kind": "process"}

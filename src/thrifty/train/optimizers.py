"""What takes the steps: AdamW, or the same with states in memory that a graphics card may push out when it runs full."""
from __future__ import annotations

from typing import Any

import torch

from thrifty.core.errors import Missing, NoSuchSetting


def make(name: str, groups: list[dict[str, Any]], rate: float, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser called ``name``: "adamw", or "paged-adamw" (Dettmers et al., NeurIPS 2023), whose numbers are the same.

    Raises: NoSuchSetting where the device has no paged memory; Missing without bitsandbytes.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=rate)
    if device.type != "cuda":
        raise NoSuchSetting(f"optimizer {name!r} pages its states out of the memory of a CUDA card, and this trains on {device}: "
                            "use adamw, which takes the same steps")
    try:
        from bitsandbytes.optim import PagedAdamW32bit
    except ImportError as error:
        raise Missing('paged-adamw needs bitsandbytes: pip install "thrifty[quantised]"') from error
    return PagedAdamW32bit(groups, lr=rate)

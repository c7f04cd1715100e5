"""Which numbers to compute with, said with the reason."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Precision:
    """The precision of the computation and why; weights, gradients and optimiser states are float32 in any case."""

    name: str
    why: str
    device: torch.device
    warning: str | None = None

    def autocast(self) -> Any:
        """A context in which matrix products run in this precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.name == "bfloat16")


def choose(wanted: str, device: torch.device) -> Precision:
    """``wanted``, or for "auto" bfloat16 where ``device`` computes in it natively."""
    native, why = has_bfloat16(device)
    if wanted == "auto":
        return Precision("bfloat16" if native else "float32", why, device)
    if wanted == "bfloat16" and not native:
        return Precision(wanted, "as asked for; " + why, device,
                         f"The computation ran in bfloat16 as asked for, but {why}: it was emulated, which is slow.")
    return Precision(wanted, "as asked for", device)


def has_bfloat16(device: torch.device) -> tuple[bool, str]:
    """Whether ``device`` multiplies bfloat16 matrices in hardware, and the sentence that says so."""
    if device.type == "cuda":
        found = torch.cuda.is_bf16_supported(including_emulation=False)
        return found, f"{torch.cuda.get_device_name(device)} {'has' if found else 'has no'} bfloat16 instructions"
    if device.type == "cpu":
        asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private, but the only way to know
        found = any(getattr(torch.cpu, name, lambda: False)() for name in asked)
        return found, f"this processor {'has' if found else 'has no'} bfloat16 instructions (AVX512-BF16 or AMX)"
    return False, f"bfloat16 is not tried on {device.type}"

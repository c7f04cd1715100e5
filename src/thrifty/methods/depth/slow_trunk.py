"""A trunk that trains along, more slowly than what was put on it and than its head: the learning rates of Dynamic Domain
Adaptation for Efficient Inference (Li, Zhang, Ma, Liu, Li; CVPR 2021), a tenth for what is pretrained."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...core.roles import HEADS

if TYPE_CHECKING:
    from ...core import Attachment


def slow_down(at: Attachment, groups: list[dict[str, Any]], factor: float = 0.1) -> list[dict[str, Any]]:
    """The optimiser's ``groups`` with ``factor`` times the rate for base parameters outside the head."""
    slow = {id(p) for name, p in at.named_parameters() if name.startswith("base:") and not HEADS.search(name[5:])}
    found = []
    for group in groups:
        fast = [p for p in group["params"] if id(p) not in slow]
        rest = [p for p in group["params"] if id(p) in slow]
        found += [{**group, "params": fast}, {**group, "params": rest, "lr": factor * group["lr"]}]
    return [group for group in found if group["params"]]

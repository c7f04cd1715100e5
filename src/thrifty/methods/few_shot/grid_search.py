"""Settings of a trained or training-free classifier, chosen among many on pictures that it has not kept.

The grids are those of Tip-Adapter (Zhang et al., ECCV 2022, arXiv:2207.09519), which the methods after it use too.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ...core import Attachment

Setting = dict[str, float]


@dataclass(frozen=True)
class Best:
    """The setting that is right most often, how often that is (a share), and how many were tried."""

    setting: Setting
    accuracy: float
    tried: int


def grid(start: float, top: float, steps: int) -> list[float]:
    """start + i (top - start) / steps for i < steps: the upper end is never reached."""
    return [i * (top - start) / steps + start for i in range(steps)]


def best(answers: Iterable[tuple[Setting, Tensor]], labels: Tensor) -> Best:
    """The first of the settings whose logits [N, K] are right most often."""
    found: Setting = {}
    most, count = -1, 0
    for setting, logits in answers:
        right, count = int((logits.argmax(-1) == labels).sum()), count + 1
        if right > most:
            found, most = setting, right
    return Best(found, most / len(labels), count)


def record(at: Attachment, found: Best, rows: int, before: float) -> None:
    """Leave in ``at.about`` what was searched, on what, and what it changed."""
    assert at.method is not None
    chosen = {name: round(value, 6) for name, value in found.setting.items()}
    at.about["measured"] = {"searched on": "the validation split", "pictures": rows, "settings tried": found.tried,
                            "chosen": chosen, "validation accuracy": found.accuracy, "validation accuracy before": before}
    at.about["notes"] = [
        f"{', '.join(f'{name} = {value:g}' for name, value in chosen.items())} of {at.method.name} were searched on the {rows} "
        f"pictures of the validation split ({found.tried:,} settings): what they score there says nothing. The test split had no "
        "part in it."]

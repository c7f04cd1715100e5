"""What tuning a candidate would take: a place for estimates that somebody else makes."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from thrifty.candidates.candidate import Candidate
from thrifty.data import Dataset


@dataclass(frozen=True)
class Cost:
    """One tuning: ``seconds``, bytes of memory at its ``peak``, and ``words`` on what is tuned and how; None where unknown."""

    seconds: float | None = None
    peak: int | None = None
    words: str = ""


Planner = Callable[[Candidate, Dataset], Cost | None]
"""Asked once per candidate that could be seen; it answers None where it cannot say."""

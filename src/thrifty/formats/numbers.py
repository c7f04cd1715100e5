"""T5's STS-B: a number between 0 and 5 as one of 26 texts."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from thrifty.formats.format import UNKNOWN, Format, Row

UNREADABLE = -1.0   # what a text that is no number counts as


@dataclass(frozen=True)
class Similarity(Format):
    """``stsb sentence1: A sentence2: B`` -> "0.0", "0.2", ... "5.0" (Raffel et al., JMLR 2020, arXiv:1910.10683)."""

    scores: tuple[str, ...] = ("pearson", "spearman", "negative_mse", "negative_mae")
    task: ClassVar[str] = "regression"

    def write(self, row: Row, turn: int = 0) -> str:
        """Both sentences behind their keys."""
        return f"stsb sentence1: {row['sentence1']} sentence2: {row['sentence2']}"

    def target(self, row: Row) -> str:
        """The nearest fifth with one decimal; a tie goes to the even multiple, and single precision decides what is a tie."""
        label = row.get("label")
        if label is None:
            return UNKNOWN
        return f"{float(np.rint(np.float32(label) * np.float32(5))) / 5:.1f}"

    def read(self, text: str, row: Row) -> float:
        """The number, or -1 for a text that is none."""
        return read_number(text)


def read_number(text: str) -> float:
    """The finite number that ``text`` writes; -1 for anything else."""
    try:
        number = float(text)
    except ValueError:
        return UNREADABLE
    return number if math.isfinite(number) else UNREADABLE

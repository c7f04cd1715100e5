"""T5's rule for classification: the name of the task, then every feature behind its key.

Raffel, Shazeer, Roberts, Lee, Narang, Matena, Zhou, Li, Liu: Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer; JMLR 2020, arXiv:1910.10683.
"""
from __future__ import annotations

from dataclasses import dataclass

from thrifty.formats.classes import Classes
from thrifty.formats.format import Row


@dataclass(frozen=True)
class Keyed(Classes):
    """``<prefix> <key1>: <value1> <key2>: <value2> ...``, one space between all parts.

    Keys are the fields' names in alphabetical order, unless ``order`` gives names and order of its own (then position by position
    those of ``fields``).
    """

    prefix: str = ""
    order: tuple[tuple[str, str], ...] = ()     # (key, field)

    def write(self, row: Row, turn: int = 0) -> str:
        """The row by the rule."""
        pairs = self.order or tuple((name, name) for name in sorted(field.name for field in self.fields))
        return " ".join([self.prefix, *(f"{key}: {row[field]}" for key, field in pairs)])

"""Instructions in words, with places for the fields of a row."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from thrifty.core.errors import NoSuchSetting, nearest

PLACE = re.compile(r"\{(\w+)\}")
OPTIONS = "options_"    # stands for the block that lists the answers


@dataclass(frozen=True)
class Template:
    """``source`` and ``target`` with places like ``{premise}``; ``{answer}`` is the right answer, ``{options_}`` lists all.

    An inverse template asks for a field of the row and gives the answer away: it can teach, but not judge.
    """

    source: str
    target: str = "{answer}"

    @property
    def inverse(self) -> bool:
        """Whether the answer is told and something else is asked for."""
        return self.target != "{answer}"

    @property
    def places(self) -> set[str]:
        """Names of the fields that must be filled."""
        return set(PLACE.findall(self.source + self.target))


def fill(pattern: str, fields: Mapping[str, str]) -> str:
    """``pattern`` with every place filled; braces in the fields stay as they are.

    Raises: NoSuchSetting for a place that no field fills.
    """
    def put(match: re.Match[str]) -> str:
        if match[1] not in fields:
            raise NoSuchSetting(f"nothing fills {{{match[1]}}} in {pattern!r}.{nearest(match[1], fields)}")
        return fields[match[1]]

    return PLACE.sub(put, pattern)


def list_options(answers: Sequence[str]) -> str:
    """The block that lists the answers, in their fixed order."""
    return "OPTIONS:" + "".join(f"\n- {answer}" for answer in answers)

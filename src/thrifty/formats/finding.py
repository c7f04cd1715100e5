"""Formats by name."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from thrifty.core.errors import NoSuchSetting, nearest
from thrifty.formats import own
from thrifty.formats.classes import Classes, bind, spell
from thrifty.formats.format import Format
from thrifty.formats.instructions import Instruction


@cache
def shelf() -> dict[str, Format]:
    """Every format with a name of its own."""
    from thrifty.formats.flan import FLAN
    from thrifty.formats.t5 import T5

    return {**T5, **FLAN}


def names() -> list[str]:
    """Their names."""
    return list(shelf())


def find(name: str, *, task: str | None = None, labels: Sequence[str] | None = None,
         words: Mapping[str, str] | None = None) -> Format:
    """The format called ``name``.

    Args:
        name: ``t5:mrpc`` and its kin write a GLUE or SuperGLUE task as T5 does; ``flan:rte`` tells it in ten wordings in turn, and
            ``flan:rte:3`` in the fourth only. Any other text with places for columns, such as "Is this good? {review}", is a
            format itself.
        task: what a text of your own is for; text-classification unless told.
        labels: the classes, for formats that have none of their own.
        words: class -> the word that spells it, where it is to be another than the format's.

    Raises:
        NoSuchSetting: an unknown name, with the nearest; classes or words that do not fit.
    """
    format = look_up(name, task)
    if labels is not None and isinstance(format, Classes):
        format = bind(format, labels)
    if words:
        if not isinstance(format, Classes):
            raise NoSuchSetting(f"words spell classes, and {format.name} has none.")
        format = spell(format, words) if format.labels else format  # else when the data has named the classes
    return format


def look_up(name: str, task: str | None) -> Format:
    """The format as it stands on the shelf, one wording of it, or one made of the text ``name``.

    Raises: NoSuchSetting.
    """
    if "{" in name:
        return own.make(name, task or "text-classification")
    stem, _, number = name.rpartition(":")
    known = shelf()
    if name in known:
        format = known[name]
    elif stem in known and number.isdecimal() and isinstance(known[stem], Instruction):
        format = choose_wording(known[stem], int(number))  # type: ignore[arg-type]
    else:
        raise NoSuchSetting(f"there is no format {name!r}.{nearest(name, known, 60)} Or give a text with places for columns: "
                            "'Is this good? {review}'.")
    if task is not None and kind(task) != format.task:
        raise NoSuchSetting(f"the format {name} is for {format.task}, not for {task}.")
    return format


def choose_wording(format: Instruction, number: int) -> Instruction:
    """``format`` with one of its wordings only, counted from 0.

    Raises: NoSuchSetting for a number out of range, or a wording that asks for no answer.
    """
    if number >= len(format.templates):
        raise NoSuchSetting(f"{format.name} has {len(format.templates)} wordings, numbered from 0; there is no {number}.")
    if format.templates[number].inverse:
        raise NoSuchSetting(f"wording {number} of {format.name} tells the answer and asks for something else: it cannot be judged.")
    return replace(format, name=f"{format.name}:{number}", only=number)


def kind(task: str) -> str:
    """A task without what it matters how a model writes."""
    return "generation" if task.endswith("generation") else task

"""Pictures: where a model is given them, whatever the argument is called, and how large they are.

For methods that change pictures or look at them before the model does, as in Exploring Visual Prompts for Adapting Large-Scale
Models (Bahng, Jahanian, Sankaranarayanan, Isola; 2022, arXiv:2203.17274).
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...core.errors import Unfit
from ...core.probe import guess_example

if TYPE_CHECKING:
    from ...core import Attachment


def are_pictures(value: Any) -> bool:
    """Whether ``value`` is a batch of pictures [B, C, H, W]."""
    return isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point()


def find(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int | str, Tensor]:
    """The place of the pictures among the arguments of a model, and the pictures.

    Raises:
        Unfit: there are none.
    """
    given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    for place, value in given:
        if are_pictures(value):
            return place, value
    raise Unfit(f"no pictures [batch, channels, height, width] among what the model is given: {len(args)} values and "
                f"{sorted(kwargs)}")


def exchange(args: tuple[Any, ...], kwargs: dict[str, Any], place: int | str,
             pictures: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with other ``pictures`` at that place."""
    if isinstance(place, int):
        return (*args[:place], pictures, *args[place + 1 :]), kwargs
    return args, {**kwargs, place: pictures}


def example(at: Attachment) -> Tensor:
    """The pictures [B, C, H, W] of the batch that the model is attached with, or else of the one that it says it takes.

    Raises:
        Unfit: the model reads no pictures, or that cannot be known.
    """
    held = at.seen.example if at.seen.example is not None else guess_example(at.model)
    kind = type(at.model).__name__
    if held is None:
        raise Unfit(f"how large the pictures of {kind} are is only known from a batch: pass example=")
    given = held if isinstance(held, dict) else dict(enumerate(held if isinstance(held, tuple) else (held,)))
    found = [value for value in given.values() if are_pictures(value)]
    if not found:
        raise Unfit(f"{kind} reads no pictures [batch, channels, height, width], only {sorted(map(str, given))}")
    return found[0]

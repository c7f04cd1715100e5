"""Pictures changed by chance while training, by the names of recipes. PIL only.

What is drawn for a picture is a pure function of numbers that the caller gives (seed, step and row), so that each epoch shows
another picture, and a resumed training the same ones.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Literal

from thrifty.core.errors import NoSuchSetting, nearest
from thrifty.data import randaugment

if TYPE_CHECKING:
    from PIL.Image import Image

Change = Callable[["Image", Random], "Image"]
AREA = 0.08             # the smallest share of a picture that is cut out, unless told
RATIO = 3 / 4           # the narrowest cut; the widest is its inverse
TRIES = 10


@dataclass(frozen=True)
class Recipe:
    """What happens to a picture. ``squashed`` says when it is resized to the model's sides at once, whatever its shape, where the
    model's own way would crop: a cut is the crop already."""

    name: str
    changes: tuple[Change, ...] = ()
    squashed: Literal["never", "training", "always"] = "never"

    def apply(self, picture: Image, *drawn: int) -> Image:
        """The picture [RGB] as training sees it where chance is ``drawn``."""
        source = Random(" ".join(map(str, drawn)))
        for change in self.changes:
            picture = change(picture, source)
        return picture


def find(name: str) -> Recipe:
    """The recipe called ``name``:

    * "none": the model's own preparation and nothing else;
    * "flip": every other picture is mirrored;
    * "crop-flip", "crop-flip:0.5": a part is cut out, of 8 % of the area or of that share to all of it, of any shape between
      3 : 4 and 4 : 3, then as "flip" (C. Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, arXiv:1409.4842);
    * "randaugment", "randaugment:5": as "crop-flip", then two changes of strength 9 of 30, or of that strength;
    * "vtab": nothing by chance, but all pictures, also those that are judged, are resized whole whatever their shape (X. Zhai
      et al., "The Visual Task Adaptation Benchmark", 2019, arXiv:1910.04867).

    Raises: NoSuchSetting for an unknown name, with the nearest; a number that the recipe does not take.
    """
    base, colon, raw = name.partition(":")
    if base not in RECIPES:
        raise NoSuchSetting(f"there is no augmentation {name!r}." + nearest(base, RECIPES, 40))
    number = read_number(name, base, raw) if colon else NUMBERS.get(base, (0.0,))[0]
    return Recipe(name, *RECIPES[base](number))


def read_number(name: str, base: str, raw: str) -> float:
    """The number behind a recipe's name.

    Raises: NoSuchSetting.
    """
    if base not in NUMBERS:
        raise NoSuchSetting(f"the augmentation {base!r} takes no number, but {name!r} gives one")
    _, low, high = NUMBERS[base]
    try:
        number = float(raw)
    except ValueError:
        number = math.nan
    if not low < number <= high:
        raise NoSuchSetting(f"the number of the augmentation {name!r} must lie above {low:g} and be at most {high:g}")
    return number


def mirror(picture: Image, source: Random) -> Image:
    """Every other picture, left and right exchanged."""
    from PIL import ImageOps

    return ImageOps.mirror(picture) if source.random() < 0.5 else picture


def cut(picture: Image, source: Random, least: float) -> Image:
    """A part of the picture: its area even in [``least``, 1], the logarithm of its shape even between 3 : 4 and 4 : 3.

    A part that does not fit is drawn again, at last the largest one in the middle whose shape is allowed.
    """
    wide, high = picture.size
    for _ in range(TRIES):
        area = wide * high * source.uniform(least, 1)
        ratio = math.exp(source.uniform(math.log(RATIO), -math.log(RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= wide and 0 < h <= high:
            x, y = source.randint(0, wide - w), source.randint(0, high - h)
            return picture.crop((x, y, x + w, y + h))
    w, h = min(wide, max(1, round(high / RATIO))), min(high, max(1, round(wide / RATIO)))
    x, y = (wide - w) // 2, (high - h) // 2
    return picture.crop((x, y, x + w, y + h))


Parts = tuple[tuple[Change, ...], Literal["never", "training", "always"]]
RECIPES: dict[str, Callable[[float], Parts]] = {
    "none": lambda _: ((), "never"),
    "flip": lambda _: ((mirror,), "never"),
    "crop-flip": lambda least: ((partial(cut, least=least), mirror), "training"),
    "randaugment": lambda strength: ((partial(cut, least=AREA), mirror, partial(randaugment.randaugment, strength=strength)),
                                     "training"),
    "vtab": lambda _: ((), "always"),
}
NUMBERS = {"crop-flip": (AREA, 0.0, 1.0), "randaugment": (randaugment.STRENGTH, 0.0, randaugment.MOST)}  # default, above, at most

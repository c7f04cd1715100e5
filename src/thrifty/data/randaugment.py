"""RandAugment: a few changes out of fourteen, all of one strength.

E. D. Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", NeurIPS 2020,
arXiv:1909.13719. Fourteen changes as in its appendix; how far the strongest of them goes is as torchvision has it.
"""
from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

CHANGES = 2             # one after the other
STRENGTH, MOST = 9.0, 30.0


def randaugment(picture: Image, source: Random, strength: float = STRENGTH) -> Image:
    """``picture`` [RGB], of the same size, after two changes drawn evenly; each goes ``strength`` / 30 of the way."""
    for _ in range(CHANGES):
        change = source.choice(ALL)
        picture = change(picture, strength / MOST, source.choice((-1.0, 1.0)))
    return picture


def enhance(name: str) -> Callable[[Image, float, float], Image]:
    """Brightness, colour, contrast or sharpness, from 0.1 to 1.9 of what it is."""
    def change(picture: Image, level: float, sign: float) -> Image:
        from PIL import ImageEnhance

        changed: Image = getattr(ImageEnhance, name)(picture).enhance(1 + 0.9 * level * sign)
        return changed
    return change


def slant(across: bool) -> Callable[[Image, float, float], Image]:
    """Up to 0.3 pixels along one side for each along the other, about the middle."""
    def change(picture: Image, level: float, sign: float) -> Image:
        by = 0.3 * level * sign
        return move(picture, (1, by, -by * picture.height / 2, 0, 1, 0) if across else
                    (1, 0, 0, by, 1, -by * picture.width / 2))
    return change


def shift(across: bool) -> Callable[[Image, float, float], Image]:
    """Up to 150 / 331 of a side."""
    def change(picture: Image, level: float, sign: float) -> Image:
        by = 150 / 331 * level * sign
        return move(picture, (1, 0, by * picture.width, 0, 1, 0) if across else (1, 0, 0, 0, 1, by * picture.height))
    return change


def move(picture: Image, numbers: tuple[float, ...]) -> Image:
    """An affine map of places; what comes from outside is black."""
    from PIL import Image

    return picture.transform(picture.size, Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR)


def keep(picture: Image, level: float, sign: float) -> Image:
    """No change."""
    return picture


def turn(picture: Image, level: float, sign: float) -> Image:
    """Up to 30 degrees."""
    from PIL import Image

    return picture.rotate(30 * level * sign, Image.Resampling.BILINEAR)


def posterise(picture: Image, level: float, sign: float) -> Image:
    """Down to four bits of each colour."""
    from PIL import ImageOps

    return ImageOps.posterize(picture, 8 - round(4 * level))


def solarise(picture: Image, level: float, sign: float) -> Image:
    """Everything inverted that is as bright as a threshold, which falls from 255 to 0."""
    from PIL import ImageOps

    return ImageOps.solarize(picture, int(255 * (1 - level)))


def stretch(picture: Image, level: float, sign: float) -> Image:
    """Each colour from its darkest to its brightest."""
    from PIL import ImageOps

    return ImageOps.autocontrast(picture)


def equalise(picture: Image, level: float, sign: float) -> Image:
    """Each brightness as often as any other."""
    from PIL import ImageOps

    return ImageOps.equalize(picture)


ALL: tuple[Callable[[Image, float, float], Image], ...] = (
    keep, stretch, equalise, turn, solarise, posterise, enhance("Color"), enhance("Contrast"), enhance("Brightness"),
    enhance("Sharpness"), slant(True), slant(False), shift(True), shift(False),
)

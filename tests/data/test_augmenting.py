"""Recipes for training pictures: what they may draw, that they draw it again, and names that are none."""
from __future__ import annotations

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")

from thrifty.core.errors import NoSuchSetting  # noqa: E402
from thrifty.data import randaugment  # noqa: E402
from thrifty.data.augmenting import RECIPES, find  # noqa: E402


def places(wide, high):
    """A picture whose colours say where each pixel was."""
    y, x = np.mgrid[:high, :wide].astype(np.uint8)
    return Image.fromarray(np.stack([x, y, np.full_like(x, 128)], -1))


def noise(wide=40, high=30):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (high, wide, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_numbers_draw_the_same_picture(name):
    recipe, picture = find(name), noise()
    seen = [recipe.apply(picture, 0, step, 7).tobytes() for step in range(12)]
    assert seen == [find(name).apply(noise(), 0, step, 7).tobytes() for step in range(12)]
    others = {recipe.apply(picture, 1, 0, 7).tobytes(), recipe.apply(picture, 0, 0, 8).tobytes()}
    if name in ("none", "vtab"):
        assert {*seen, *others} == {picture.tobytes()}
    else:
        assert len(set(seen)) == (2 if name == "flip" else 12)
        assert name == "flip" or len({seen[0], *others}) == 3


def test_a_flip_is_every_other_time():
    picture = places(6, 4)
    seen = [np.asarray(find("flip").apply(picture, 0, step, 0)) for step in range(400)]
    flipped = sum((one == np.asarray(picture)[:, ::-1]).all() for one in seen)
    assert flipped + sum((one == np.asarray(picture)).all() for one in seen) == 400
    assert 160 < flipped < 240


@pytest.mark.parametrize("name, least", [("crop-flip", 0.08), ("crop-flip:0.5", 0.5), ("crop-flip:1", 1.0)])
def test_a_cut_has_the_area_and_the_shape_that_it_may_have(name, least):
    wide, high = 120, 100
    recipe, picture = find(name), places(wide, high)
    areas, mirrored = [], 0
    for step in range(300):
        one = np.asarray(recipe.apply(picture, 0, step, 0)).astype(int)
        h, w = one.shape[:2]
        areas.append(h * w / (wide * high))
        assert 0.97 * 3 / 4 - 0.03 < w / h < 4 / 3 * 1.03 + 0.03
        mirrored += one[0, 0, 0] > one[0, -1, 0]
        across = np.diff(one[:, ::-1] if one[0, 0, 0] > one[0, -1, 0] else one, axis=1)[..., 0]
        assert (across == 1).all() and (np.diff(one, axis=0)[..., 1] == 1).all(), "neighbours stay neighbours"
    assert min(areas) > 0.95 * least and max(areas) > 0.9 and 110 < mirrored < 190
    assert least == 1.0 or min(areas) < least + 0.1
    assert find("crop-flip").apply(places(200, 2), 0, 0, 0).size[0] <= 4, "of a strip the middle is taken"


def test_what_strength_means():
    picture = places(100, 80)
    middle = np.asarray(picture)[40, 50].astype(int)
    shifted = np.asarray(randaugment.shift(True)(picture, 1.0, 1.0)).astype(int)
    assert shifted[40, 20, 0] == 20 + round(150 / 331 * 100) and (shifted[:, 60:] == 0).all()
    slanted = np.asarray(randaugment.slant(True)(picture, 1.0, 1.0)).astype(int)
    assert abs(slanted[40, 50] - middle).max() <= 1 and abs(slanted[60, 50, 0] - 56) <= 1 and abs(slanted[20, 50, 0] - 44) <= 1
    turned = np.asarray(randaugment.turn(picture, 1.0, 1.0)).astype(int)
    assert abs(turned[40, 50] - middle).max() <= 1
    angle = np.deg2rad(30)
    assert abs(turned[40, 70, :2] - (50 + 20 * np.cos(angle), 40 + 20 * np.sin(angle))).max() <= 2
    values = np.asarray(randaugment.posterise(noise(), 1.0, 1.0))
    assert set(values.ravel() % 16) == {0}
    grey = Image.new("RGB", (2, 2), (100, 100, 100))
    assert randaugment.enhance("Brightness")(grey, 1.0, 1.0).getpixel((0, 0)) == (190, 190, 190)
    assert randaugment.enhance("Brightness")(grey, 1.0, -1.0).getpixel((0, 0)) == (10, 10, 10)
    assert randaugment.solarise(grey, 1.0, 1.0).getpixel((0, 0)) == (155, 155, 155)
    assert randaugment.solarise(grey, 0.0, 1.0).getpixel((0, 0)) == (100, 100, 100)
    assert len(randaugment.ALL) == 14
    for change in randaugment.ALL:
        assert change(noise(), 0.3, 1.0).size == (40, 30)


@pytest.mark.parametrize("name, words", [
    ("flipp", "no augmentation 'flipp'. Did you mean 'flip'"), ("", "no augmentation ''"), ("flip:2", "takes no number"),
    ("crop-flip:0", "above 0 and be at most 1"), ("crop-flip:1.5", "at most 1"), ("crop-flip:much", "above 0"),
    ("randaugment:nan", "at most 30"), ("crop-flip:", "above 0"), ("random", "no augmentation 'random'"),
])  # fmt: skip
def test_names_that_are_none(name, words):
    with pytest.raises(NoSuchSetting, match=words):
        find(name)

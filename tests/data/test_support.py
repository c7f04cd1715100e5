"""Support sets: folders of pictures by class, read and generated."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from thrifty.core.errors import BadData
from thrifty.data.support import generate, read_support

LABELS = ["cat", "sea_horse", "yin yang"]


def draw(name: str) -> Iterator[Image.Image]:
    for i in range(len(name) % 4 + 1):
        yield Image.new("RGB", (8, 8), (len(name), i, 0))


def test_what_is_generated_is_read(tmp_path: Path) -> None:
    place = generate(draw, LABELS, tmp_path / "deep" / "support")
    table = read_support(place, ["Yin_Yang", "cat", "sea horse"])
    assert table["label"] == [0] + [1] * 4 + [2] * 2
    assert [path.parent.name for path in table["image"]] == ["yin yang"] + ["cat"] * 4 + ["sea_horse"] * 2
    assert Image.open(table["image"][4]).getpixel((0, 0)) == (3, 3, 0)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["support"]


def test_folders_that_are_refused(tmp_path: Path) -> None:
    place = generate(draw, LABELS, tmp_path / "support")
    with pytest.raises(BadData, match="no folder for the class 'dog'"):
        read_support(place, [*LABELS, "dog"])
    with pytest.raises(BadData, match="yin yang is the folder of no class"):
        read_support(place, LABELS[:2])
    (place / "sea horse").mkdir()
    with pytest.raises(BadData, match="both of the class 'sea_horse'"):
        read_support(place, LABELS)
    (place / "sea horse").rmdir()
    for picture in (place / "cat").iterdir():
        picture.unlink()
    with pytest.raises(BadData, match="lacks the class 'cat'"):
        read_support(place, LABELS)
    with pytest.raises(BadData, match="is no folder"):
        read_support(tmp_path / "nowhere", LABELS)


def test_generators_that_are_refused(tmp_path: Path) -> None:
    for labels, why in ((["sea horse", "sea_horse"], "read alike"), (["cat", "cat"], "read alike"), (["a/b"], "name of a folder"),
                        (["_"], "name of a folder")):
        with pytest.raises(BadData, match=why):
            generate(draw, labels, tmp_path / "new")
    with pytest.raises(BadData, match="no picture for the class 'cat'"):
        generate(lambda name: [], LABELS, tmp_path / "new")
    with pytest.raises(BadData, match="gave str for the class 'cat'"):
        generate(lambda name: ["cat.png"], LABELS, tmp_path / "new")
    assert not list(tmp_path.iterdir())  # nothing half done
    (tmp_path / "new").mkdir()
    with pytest.raises(BadData, match="is there already"):
        generate(draw, LABELS, tmp_path / "new")

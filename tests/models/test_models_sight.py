"""What one model was shown, as another would have seen it."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_folders
import torch

from thrifty import models
from thrifty.models.sight import Sight, show, sight


def test_a_processor_says_how_it_leaves_pictures(tmp_path: Path) -> None:
    found = sight(models.load(str(tiny_folders.vit(tmp_path)), "image-classification", ["a", "b"]))
    assert found == Sight((0.5, 0.4, 0.3), (0.5, 0.5, 0.5), (32, 32))


@pytest.mark.parametrize(("more", "size"), [
    ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 200}, "do_center_crop": True}, (224, 200)),
    ({"size": {"shortest_edge": 224}, "crop_size": None, "do_center_crop": None}, (224, 224)),
    ({"size": {"height": 8, "width": 9}, "do_center_crop": False}, (8, 9))])
def test_sizes_and_scales(more: dict[str, Any], size: tuple[int, int]) -> None:
    said = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3], "do_rescale": True, "rescale_factor": 1 / 255, **more}
    found = lambda **other: sight(models.Backbone(torch.nn.Identity(), None, {"image": {**said, **other}}))  # noqa: E731
    assert found() == Sight((0.1, 0.2, 0.3), (1.0, 2.0, 3.0), size)
    assert found(do_normalize=False) == Sight((0.0,) * 3, (1.0,) * 3, size)
    assert found(rescale_factor=2 / 255) == Sight((0.05, 0.1, 0.15), (0.5, 1.0, 1.5), size)


def test_timm_says_it_in_its_own_words() -> None:
    said = {"image": {"input_size": [3, 64, 48], "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}}
    assert sight(models.Backbone(torch.nn.Identity(), None, said)) == Sight((0.5,) * 3, (0.2,) * 3, (64, 48))
    assert sight(models.wrap(torch.nn.Identity(), lambda picture: picture)) is None


def test_colours_and_sizes_are_changed_and_back() -> None:
    one, other = Sight((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), (8, 8)), Sight((0.0,) * 3, (1.0,) * 3, (8, 8))
    plain = torch.rand(2, 3, 8, 8)
    seen = (plain - torch.tensor(one.mean).view(-1, 1, 1)) / torch.tensor(one.std).view(-1, 1, 1)
    torch.testing.assert_close(show(seen, one, other), plain)
    torch.testing.assert_close(show(plain, other, one), seen)
    assert show(seen, one, one) is seen
    even = torch.full((1, 3, 8, 8), 0.25)
    torch.testing.assert_close(show(even, other, Sight((0.25,) * 3, (1.0,) * 3, (16, 12))), torch.zeros(1, 3, 16, 12))

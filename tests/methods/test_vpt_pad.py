"""VPT's border of pixels: published counts, and where each pixel stands."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from backbones import count, frozen_stay, run, shake, tiny

import thrifty
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.methods import make
from thrifty.methods.vpt_pad import Border


def border(at: thrifty.Attachment) -> Border:
    return next(e for e in at.edits.values() if isinstance(e, Border))


@pytest.mark.parametrize("width", [1, 10, 30])
def test_counts(width: int) -> None:
    with torch.device("meta"):
        models = [hf.ResNetModel(hf.ResNetConfig()), hf.ConvNextModel(hf.ConvNextConfig())]
    for model in models:
        at = thrifty.attach(model, thrifty.VPTPad(width=width))
        assert count(at) == 3 * 2 * width * (224 + 2 * width) + 3 * 224 * 2 * width


def test_by_hand() -> None:
    model = tiny("resnet").double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    at = thrifty.attach(model, thrifty.VPTPad(width=4, size=32))
    edit = border(at)
    assert 0 <= float(edit.rows.min()) < 0.05 and 0.95 < float(edit.rows.max()) <= 1
    y = run(model, pixel_values=x)
    at.disable()
    picture = torch.zeros(2, 3, 40, 40, dtype=torch.float64)
    picture[:, :, :4], picture[:, :, 36:] = edit.rows.detach()[:, :, :4], edit.rows.detach()[:, :, 4:]
    picture[:, :, 4:36, :4], picture[:, :, 4:36, 36:] = edit.columns.detach()[..., :4], edit.columns.detach()[..., 4:]
    for channel, (mean, std) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        picture[:, channel] = (picture[:, channel] - mean) / std
    picture[:, :, 4:36, 4:36] = x
    torch.testing.assert_close(y, run(model, pixel_values=picture))


def test_trains_saves_and_leaves(tmp_path: Any) -> None:
    model = tiny("resnet")
    base = run(model)
    at = thrifty.attach(model, thrifty.VPTPad(width=2, size=32), also_train="head")
    before = {n: b.clone() for n, b in model.named_buffers()}
    shake(at)
    assert {n.rpartition(".")[2] for n in frozen_stay(model, at)} == {"rows", "columns", "weight", "bias"}
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    y = run(model.eval())
    at.save(tmp_path / "border")
    fresh = tiny("resnet")
    thrifty.load(fresh, tmp_path / "border")
    assert torch.equal(run(fresh), y)
    at.detach()
    assert torch.equal(run(model), base)


def test_refusals() -> None:
    for kind in ("vit", "swin", "bert"):
        with pytest.raises(Unfit, match="convolutional"):
            thrifty.attach(tiny(kind), thrifty.VPTPad())
    model = tiny("resnet")
    thrifty.attach(model, thrifty.VPTPad(), check=False)
    with pytest.raises(Unfit, match="size=32"):
        run(model)
    for setting, value in (("width", 0), ("size", 0), ("mean", []), ("std", [1.0])):
        with pytest.raises(NoSuchSetting, match=setting):
            thrifty.attach(tiny("resnet"), make("vpt-pad", **{setting: value}))

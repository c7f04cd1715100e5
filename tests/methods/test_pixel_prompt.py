"""Pixel prompts: where they stand, what they count, what they leave alone."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from backbones import count, frozen_stay, published, run, shake, tiny

import thrifty
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.methods import make
from thrifty.methods.pixel_prompt import Pixels

KINDS = ["vit", "dinov2", "swin", "resnet"]
FEATURES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def prompt(at: thrifty.Attachment) -> Pixels:
    (edit,) = (e for e in at.edits.values() if isinstance(e, Pixels))
    return edit


def attach(model: Any, **settings: Any) -> thrifty.Attachment:
    side = getattr(model.config, "image_size", 32)
    example = {"pixel_values": torch.zeros(1, 3, side, side)}
    return thrifty.attach(model, thrifty.PixelPrompt(**{"width": 4, **settings}), example=example)


@pytest.mark.parametrize(("kind", "width", "wanted"), [
    ("padding", 30, 12 * 30 * (224 - 30)), ("padding", 30, 69_840), ("padding", 112, 3 * 224 * 224), ("fixed", 50, 3 * 50 * 50),
    ("random", 50, 7_500)])
def test_counts(kind: str, width: int, wanted: int) -> None:
    assert count(thrifty.attach(published("vit-b16"), thrifty.PixelPrompt(kind=kind, width=width))) == wanted


def test_pictures_that_are_not_square_are_framed_too() -> None:
    at = thrifty.attach(tiny("resnet"), thrifty.PixelPrompt(width=2), example={"pixel_values": torch.zeros(1, 3, 8, 12)})
    assert prompt(at).prompt().shape == (1, 3, 8, 12) and count(at) == 3 * (8 * 12 - 4 * 8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_sees_the_sum(kind: str) -> None:
    model = tiny(kind)
    side = getattr(model.config, "image_size", 32)
    x = torch.randn(3, 3, side, side)
    with torch.no_grad():
        at = attach(model)
        p = prompt(at)
        v = torch.zeros(3, side, side)
        v[:, :4], v[:, -4:], v[:, 4:-4, :4], v[:, 4:-4, -4:] = p.up[0], p.down[0], p.left[0], p.right[0]
        y = model(pixel_values=x).logits
        assert torch.equal(model(x).logits, y)  # however it is passed
        assert torch.equal(model(labels=torch.zeros(3, dtype=torch.long), pixel_values=x).logits, y)
        for parameter in at.parameters():
            parameter.zero_()
        base = model(pixel_values=x).logits
        at.disable()
        assert torch.equal(model(pixel_values=x).logits, base)  # nothing added is the frozen model
        torch.testing.assert_close(model(pixel_values=x + v).logits, y)


def test_the_middle_gets_no_change_and_the_frame_all_of_the_gradient() -> None:
    model = tiny("vit")
    at = attach(model, width=5)
    x = FEATURES.clone().requires_grad_()
    (_, kwargs) = prompt(at)((), {"pixel_values": x})
    assert torch.equal(kwargs["pixel_values"][:, :, 5:-5, 5:-5], x[:, :, 5:-5, 5:-5])
    moved = kwargs["pixel_values"] - x
    torch.testing.assert_close(moved[0], moved[1], atol=1e-6, rtol=0)
    model(pixel_values=x).logits.square().sum().backward()
    whole = x.grad.sum(0)  # the sum over pictures: each takes the same prompt
    torch.testing.assert_close(prompt(at).up.grad[0], whole[:, :5])
    torch.testing.assert_close(prompt(at).right.grad[0], whole[:, 5:-5, -5:])


def test_patches_stand_where_they_should() -> None:
    model = tiny("vit")
    x = torch.zeros(2, 3, 16, 16)
    fixed = attach(model, kind="fixed", width=5)
    v = prompt(fixed)((), {"pixel_values": x})[1]["pixel_values"]
    assert torch.equal(v[1, :, :5, :5], prompt(fixed).patch[0]) and not v[:, :, 5:].any() and not v[:, :, :, 5:].any()
    fixed.detach()
    drawn = attach(model, kind="random", width=14)
    torch.manual_seed(0)
    corners = set()
    for _ in range(40):
        v = prompt(drawn)((), {"pixel_values": x})[1]["pixel_values"]
        assert torch.equal(v[0], v[1])
        top, left = (int(v[0, 0].any(axis).nonzero()[0]) for axis in (1, 0))
        assert torch.equal(v[0, :, top : top + 14, left : left + 14], prompt(drawn).patch[0])
        corners.add((top, left))
    assert corners == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_the_start_is_standard_normal() -> None:
    at = thrifty.attach(tiny("resnet"), thrifty.PixelPrompt(), example={"pixel_values": torch.zeros(1, 3, 224, 224)}, check=False)
    values = torch.cat([p.detach().flatten() for p in at.parameters()])
    assert abs(float(values.mean())) < 0.02 and float(values.std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", ["vit", "swin", "resnet"])
def test_only_the_pixels_train(kind: str) -> None:
    model = tiny(kind)
    at = attach(model)
    moved = frozen_stay(model, at)
    assert moved == {f"edits.default.{side}" for side in ("up", "down", "left", "right")}
    assert all(group["weight_decay"] == 0 for group in at.method.groups(at, 1.0, 0.1))


def test_the_first_classes_of_a_fixed_head_answer() -> None:
    model = tiny("resnet", num_labels=7)
    at = attach(model, classes=3)
    y = run(model)
    assert y.shape == (2, 3)
    at.disable(lambda row: row.edit == "first-classes")
    assert torch.equal(run(model)[:, :3], y)
    with pytest.raises(Unfit, match="7 classes"):
        thrifty.attach(tiny("resnet", num_labels=7), thrifty.PixelPrompt(width=2, classes=8),
                       example={"pixel_values": torch.zeros(1, 3, 32, 32)})


@pytest.mark.parametrize("kind", ["padding", "fixed"])
def test_saved_and_loaded(tmp_path: Path, kind: str) -> None:
    model = tiny("vit")
    shake(at := attach(model, kind=kind, width=8), 0.5)  # a frame that covers all: its sides have no pixels
    at.save(tmp_path / "pixels")
    fresh = tiny("vit")
    thrifty.load(fresh, tmp_path / "pixels")
    assert torch.equal(run(fresh), run(model))


def test_two_towers() -> None:
    text = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    image = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=image, projection_dim=8)).eval()
    batch = {"input_ids": torch.tensor([[1, 5, 63]]), "pixel_values": FEATURES[:1]}
    at = thrifty.attach(model, thrifty.PixelPrompt(width=4), example=batch)
    y = model(**batch).logits_per_image
    at.disable()
    moved = model(**{**batch, "pixel_values": FEATURES[:1] + prompt(at).prompt()}).logits_per_image
    torch.testing.assert_close(moved, y)


def test_refusals() -> None:
    with pytest.raises(Unfit, match="reads no pictures"):
        thrifty.attach(tiny("bert"), thrifty.PixelPrompt())
    with pytest.raises(NoSuchSetting, match="at most 8 on pictures of 16 × 16"):
        attach(tiny("vit"), width=9)
    with pytest.raises(NoSuchSetting, match="at most 15"):
        attach(tiny("vit"), width=16, kind="random")
    for setting, value in (("kind", "frame"), ("width", 0), ("classes", -1)):
        with pytest.raises(NoSuchSetting, match=setting):
            attach(tiny("vit"), **{setting: value})
    model = tiny("resnet")
    attach(model)
    with pytest.raises(Unfit, match=r"\[3, 32, 32\], these are \[3, 40, 40\]"):
        model(pixel_values=torch.zeros(1, 3, 40, 40))
    assert make("random-patch-prompt").kind == "random"

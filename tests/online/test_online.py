"""Adapting to a stream: each quantity of a step recomputed, and what must never move."""
from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import thrifty
from thrifty import online
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.methods.vdp import DomainPrompts
from thrifty.online.augment import blur, grey, turn_hue
from thrifty.online.statistics import by_batch
from thrifty.testing import tiny

GENERATOR = torch.Generator().manual_seed(4)
STREAM = [{"pixel_values": torch.randn(3, 3, 32, 32, generator=GENERATOR)} for _ in range(4)]


def halve(x: Tensor) -> Tensor:
    return 0.5 * x


def put(name: str = "resnet", **settings: Any) -> tuple[Any, thrifty.Attachment, online.VDP]:
    model = tiny.make(name).fresh()
    at = thrifty.attach(model, thrifty.VDP(specific=4, agnostic=6), example=STREAM[0])
    return model, at, online.VDP(at, halve, **settings)


def prompts(at: thrifty.Attachment) -> DomainPrompts:
    (edit,) = at.edits.values()
    assert isinstance(edit, DomainPrompts)
    return edit


def tensors(model: Any) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in model.state_dict().items() if "edits" not in n}


# -- the patches --------------------------------------------------------------------------------------------------------


def test_patches_stand_in_their_corners() -> None:
    model, at, _ = put()
    edit, x = prompts(at), STREAM[0]["pixel_values"]
    assert sum(p.numel() for p in at.parameters()) == 3 * (4**2 + 6**2) and not edit.specific.any() and not edit.agnostic.any()
    with torch.no_grad():
        edit.specific.fill_(2.0), edit.agnostic.fill_(3.0)
        wanted = x.clone()
        wanted[:, :, :4, :4] += 2
        wanted[:, :, -6:, -6:] += 3
        y = model(pixel_values=x).logits
        at.disable()
        torch.testing.assert_close(model(pixel_values=wanted).logits, y)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, at, adapt = put(rate=0.1)
    list(adapt.over(STREAM))
    adapt.keep_teacher()
    with torch.no_grad():
        y = model(**STREAM[0]).logits
    at.save(tmp_path / "patches")
    fresh = tiny.make("resnet").fresh()
    thrifty.load(fresh, tmp_path / "patches")
    with torch.no_grad():
        assert torch.equal(fresh(**STREAM[0]).logits, y)


# -- VDP ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norms", ["source", "batch"])
@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_the_model_stays_as_it_is_bit_for_bit(name: str, norms: str) -> None:
    model, at, adapt = put(name, rate=0.1, norms=norms)
    before, buffers = tensors(model), {n: b.data_ptr() for n, b in model.named_buffers()}
    for y in adapt.over(STREAM):
        assert y.shape == (3, 2) and y.isfinite().all() and not y.requires_grad
    assert all(torch.equal(t, before[n]) for n, t in tensors(model).items())
    assert {n: b.data_ptr() for n, b in model.named_buffers()} == buffers
    assert prompts(at).specific.any() and prompts(at).agnostic.any()
    at.detach()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_without_steps_it_answers_as_the_source() -> None:
    model, _, adapt = put(rate=0.0)
    with torch.no_grad():
        wanted = [model(**batch).logits for batch in STREAM]
    for y, base in zip(adapt.over(STREAM), wanted, strict=True):
        assert torch.equal(y, base)


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_two_steps_by_hand(confidence: float) -> None:
    model, at, adapt = put(rate=0.05, confidence=confidence, momentum=0.9, hold=40.0, rho=0.7, views=3)
    plain = tiny.make("resnet").fresh().requires_grad_(False)

    def ask(x: Tensor, values: list[Tensor]) -> Tensor:
        s, a = values
        return plain(pixel_values=x + F.pad(s, (0, 28, 0, 28)) + F.pad(a, (26, 0, 26, 0))).logits

    own = [torch.zeros(1, 3, 4, 4, requires_grad=True), torch.zeros(1, 3, 6, 6, requires_grad=True)]
    teacher, omega = [torch.zeros_like(p) for p in own], torch.zeros(1, 3, 6, 6)
    adam = torch.optim.Adam(own, lr=0.05)
    for batch in STREAM[:3]:
        x = batch["pixel_values"]
        with torch.no_grad():
            told = ask(0.5 * x if confidence == 1 else x, teacher)
        z = ask(x, own)
        adam.zero_grad()
        (-(told.softmax(1) * z.log_softmax(1)).sum(1).mean()).backward()
        before = own[1].detach().clone()
        adam.step()
        with torch.no_grad():
            weight = 2 * 0.05 * 40.0 * omega  # the minimum of |a - a*|² / (2 rate) + hold omega |a - before|²
            own[1].copy_((own[1] + weight * before) / (1 + weight))
            omega = 0.7 * omega + 0.3 * own[1].grad**2
            teacher = [0.9 * t + 0.1 * p for t, p in zip(teacher, own, strict=True)]
            wanted = ask(x, teacher)
        torch.testing.assert_close(adapt(batch), wanted, atol=1e-5, rtol=1e-4)
        assert (adapt.omega >= 0).all()
    torch.testing.assert_close(adapt.omega, omega, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(prompts(at).agnostic.detach(), own[1].detach(), atol=1e-4, rtol=1e-3)


def test_what_is_held_stays_and_what_is_free_moves() -> None:
    _, at, adapt = put(rate=0.1)
    adapt(STREAM[0])
    assert adapt.omega.all()
    adapt.hold = 1e30
    kept, free = prompts(at).agnostic.detach().clone(), prompts(at).specific.detach().clone()
    adapt(STREAM[1])
    torch.testing.assert_close(prompts(at).agnostic.detach(), kept, atol=1e-4, rtol=0)
    assert not torch.allclose(prompts(at).specific, free, atol=1e-2)


def test_a_teacher_with_momentum_one_never_moves() -> None:
    _, _, adapt = put(rate=0.1, momentum=1.0)
    list(adapt.over(STREAM))
    assert not any(t.any() for t in adapt.teacher.values())


def test_answers_know_neither_labels_nor_what_comes() -> None:
    def stream() -> Iterator[dict[str, Tensor]]:
        yield {**STREAM[0], "labels": torch.tensor([0, 1, 0])}
        raise AssertionError("the second batch was asked for before the first was answered")

    _, _, one = put(rate=0.1)
    _, _, other = put(rate=0.1)
    assert torch.equal(next(one.over(stream())), other(STREAM[0]))


def test_another_domain() -> None:
    _, at, adapt = put(rate=0.1)
    adapt(STREAM[0])
    adapt.begin_domain()
    assert not prompts(at).specific.any() and prompts(at).agnostic.any()
    adapt(STREAM[1])
    assert prompts(at).specific.any()


# -- CoTTA --------------------------------------------------------------------------------------------------------------


def test_any_method_can_be_what_learns() -> None:
    model = tiny.make("resnet").fresh()
    before = tensors(model)
    at = thrifty.attach(model, thrifty.FullFineTuning(), example=STREAM[0])
    with torch.no_grad(), by_batch(model):
        wanted = model(**STREAM[0]).logits
    adapt = online.CoTTA(at, halve, rate=0.01, confidence=0.0, restore=0.0)
    torch.testing.assert_close(adapt(STREAM[0]), wanted)  # the teacher is the source still
    moved = {n for n, t in tensors(model).items() if not torch.equal(t, before[n])}
    assert moved == {n for n, _ in model.named_parameters()}  # and no running statistic
    adapt(STREAM[1])
    at.detach()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_entries_go_back_to_where_they_began() -> None:
    model = tiny.make("vit").fresh()
    at = thrifty.attach(model, thrifty.LoRA(rank=2))
    start = {n: p.detach().clone() for n, p in at.named_parameters()}
    online.CoTTA(at, halve, rate=0.1, restore=1.0)(STREAM[0])
    assert all(torch.equal(p, start[n]) for n, p in at.named_parameters())
    adapt = online.CoTTA(at, halve, rate=0.1, restore=0.25)
    for batch in STREAM[:2]:
        adapt(batch)
    back = torch.cat([(p == start[n]).flatten() for n, p in at.named_parameters() if n.endswith("A")])
    assert 0.15 < float(back.float().mean()) < 0.35


def test_norms_by_batch() -> None:
    model = tiny.make("convolver").fresh()
    x = torch.randn(4, 3, 32, 32)
    norm: Any = model.features[1]
    mean = norm.running_mean
    with torch.no_grad(), by_batch(model):
        h = model.features[0](x)
        wanted = (h - h.mean((0, 2, 3), keepdim=True)) / (h.var((0, 2, 3), keepdim=True, unbiased=False) + norm.eps).sqrt()
        wanted = wanted * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
        torch.testing.assert_close(norm(h), wanted, atol=1e-5, rtol=1e-4)
    assert norm.running_mean is mean


# -- views --------------------------------------------------------------------------------------------------------------


def test_views_are_pictures_of_the_same_kind() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    raw = torch.rand(2, 3, 24, 32)
    x = (raw - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    view = online.Augment(mean, std, seed=1)
    one, two = view(x), view(x)
    assert one.shape == x.shape and not torch.equal(one, two)
    assert torch.equal(online.Augment(mean, std, seed=1)(x), one)
    back = one * torch.tensor(std).view(1, 3, 1, 1) + torch.tensor(mean).view(1, 3, 1, 1)
    assert float(back.min()) >= -1e-6 and float(back.max()) <= 1 + 1e-6
    assert online.Augment()(torch.rand(2, 1, 8, 8)).shape == (2, 1, 8, 8)


def test_colours_and_blur() -> None:
    x = torch.rand(1, 3, 4, 4)
    for turns in (0.0, 0.05, -0.06):
        found = turn_hue(x, turns)
        for i in range(4):
            for j in range(4):
                h, s, v = colorsys.rgb_to_hsv(*x[0, :, i, j].tolist())
                assert found[0, :, i, j].tolist() == pytest.approx(colorsys.hsv_to_rgb((h + turns) % 1, s, v), abs=1e-5)
    flat = torch.full((1, 3, 6, 6), 0.3)
    torch.testing.assert_close(turn_hue(flat, 0.3), flat)
    torch.testing.assert_close(blur(flat, 0.4), flat)
    torch.testing.assert_close(grey(flat), flat[:, :1], atol=1e-6, rtol=0)
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 4] = 1
    line = [math.exp(-0.5 * (k / 0.5) ** 2) for k in range(-2, 3)]
    wanted = torch.tensor(line) / sum(line)
    torch.testing.assert_close(blur(point, 0.5)[0, 0, 2:7, 2:7], wanted[:, None] * wanted)


# -- refusals -----------------------------------------------------------------------------------------------------------


def test_refusals() -> None:
    model = tiny.make("vit").fresh()
    at = thrifty.attach(model, thrifty.LoRA(rank=2))
    with pytest.raises(Unfit, match="low-rank"):
        online.VDP(at, halve)
    for settings in ({"rate": -1.0}, {"momentum": 1.5}, {"restore": 2.0}, {"views": 0}, {"norms": "both"}):
        with pytest.raises(NoSuchSetting, match=next(iter(settings))):
            online.CoTTA(at, halve, **settings)
    with pytest.raises(NoSuchSetting, match="hold"):
        put(hold=-1.0)
    with pytest.raises(NoSuchSetting, match="agnostic must be at most 32"):
        thrifty.attach(tiny.make("vit").fresh(), thrifty.VDP(agnostic=40))
    with pytest.raises(NoSuchSetting, match="specific"):
        thrifty.attach(tiny.make("vit").fresh(), thrifty.VDP(specific=0))
    patched, patches, _ = put()
    with pytest.raises(Unfit, match="thrifty.online.VDP"):
        patches.method.loss(patches, None, patched, STREAM[0])
    with pytest.raises(Unfit, match="do not fit"):
        patched(pixel_values=torch.zeros(1, 3, 5, 5))

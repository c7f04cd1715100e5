"""TPT: one step by hand, and a picture is forgotten before the next."""
from __future__ import annotations

import pytest
import torch
import two_towers as two
from torch import Tensor

import thrifty
from thrifty import online
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.online.tpt import entropy_of_mean, likeliest

VIEWS = torch.randn(20, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def prompted(**settings: float) -> tuple[two.ImageTextModel, online.TPT]:
    model = two.clip()
    at = thrifty.attach(model, thrifty.CoOp(words="a photo of a"), example={"pixel_values": VIEWS[:1]})
    return model, online.TPT(at, **settings)  # type: ignore[arg-type]


def entropy(p: Tensor) -> Tensor:
    return -(p * p.log()).sum(-1)


def test_one_step_by_hand() -> None:
    model, adapt = prompted(share=0.3)
    ctx, start = adapt.ctx, adapt.ctx.detach().clone()
    found = adapt(VIEWS)
    assert torch.equal(ctx, start) and ctx.grad is None
    p = model(VIEWS)["logits"].softmax(-1)
    kept = p[entropy(p).argsort()[:6]]
    loss = entropy(kept.mean(0))
    assert float(loss) >= float(entropy(kept).mean()) - 1e-6
    torch.testing.assert_close(entropy_of_mean(likeliest(model(VIEWS)["logits"], 0.3)), loss, rtol=1e-4, atol=1e-5)
    (g,) = torch.autograd.grad(loss, ctx)
    with torch.no_grad():  # AdamW's first step: moments cancel up to eps, and decay acts on its own
        ctx.copy_(start * (1 - 5e-3 * 0.01) - 5e-3 * g / (g.abs() + 1e-8))
    torch.testing.assert_close(found, two.logits(model, VIEWS[:1])[0], rtol=1e-4, atol=1e-4)


def test_no_step_is_zero_shot_and_order_does_not_matter() -> None:
    model, adapt = prompted(rate=0.0)
    torch.testing.assert_close(adapt(VIEWS), two.logits(two.clip(), VIEWS[:1])[0], rtol=1e-5, atol=1e-5)
    _, adapt = prompted(steps=2)
    pictures = [VIEWS[:10], VIEWS[10:]]
    there, back = [adapt(p) for p in pictures], [adapt(p) for p in reversed(pictures)]
    torch.testing.assert_close(there, back[::-1], rtol=0, atol=0)
    assert not torch.allclose(there[0], two.logits(model, VIEWS[:1])[0])


def test_views_that_are_alike_are_one_view() -> None:
    logits = torch.randn(1, 4).expand(10, 4)
    torch.testing.assert_close(entropy_of_mean(likeliest(logits, 0.5)), entropy(logits[0].softmax(-1)), rtol=1e-5, atol=1e-6)
    _, adapt = prompted(share=1.0)
    torch.testing.assert_close(adapt(VIEWS[:1]), adapt(VIEWS[:1].repeat(5, 1, 1, 1)), rtol=1e-3, atol=1e-3)


def test_refusals() -> None:
    for setting, value in (("share", 0.0), ("rate", -1.0), ("steps", 0)):
        with pytest.raises(NoSuchSetting, match=setting):
            prompted(**{setting: value})
    for method in (thrifty.CoCoOp(), thrifty.IVLP(text_depth=1, image_depth=1)):
        at = thrifty.attach(two.clip(), method, example={"pixel_values": VIEWS[:1]})
        with pytest.raises(Unfit, match="nothing else"):
            online.TPT(at)

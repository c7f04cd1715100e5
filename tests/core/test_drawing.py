"""Tensors without numbers, and what is asked of them."""
from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from thrifty.core.digest import digest
from thrifty.core.drawing import is_drawing, is_fake, truncated_normal_
from thrifty.core.weight import is_quantised, read


def test_a_fake_layer_is_a_drawing_and_not_a_quantised_one() -> None:
    with FakeTensorMode():
        fake = nn.Linear(4, 3)
    for layer in (fake, nn.Linear(4, 3, device="meta")):
        assert is_drawing(layer.weight) and not is_quantised(layer)
        assert read(layer, "layer").shape == (3, 4) and digest(layer.weight) == "meta:(3, 4)"
    assert is_fake(fake.weight) and not is_drawing(nn.Linear(4, 3).weight)


def test_truncated_numbers_lie_within_their_bound_and_drawings_stay_as_they_are() -> None:
    torch.manual_seed(0)
    drawn = truncated_normal_(torch.empty(10_000), 0.02, 0.04)
    assert 0.039 < drawn.abs().max() <= 0.04 and abs(float(drawn.std()) / 0.02 - 0.88) < 0.02  # of a normal cut at two deviations
    torch.manual_seed(0)
    assert torch.equal(drawn, nn.init.trunc_normal_(torch.empty(10_000), std=0.02, a=-0.04, b=0.04))
    with FakeTensorMode():
        empty = torch.empty(5)
        assert truncated_normal_(empty, 0.02, 0.04) is empty

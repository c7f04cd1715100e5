"""NASWOT by hand, and against reference arrays."""
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from thrifty.core.errors import BadData, NoSuchSetting, Unfit
from thrifty.rank import naswot
from thrifty.rank.naswot import agreement, count_agreements

SHARED = Path(os.environ.get("THRIFTY_SHARED", Path(__file__).resolve().parents[3] / "shared"))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3))


def test_agreements_by_hand() -> None:
    kernel = count_agreements(torch.tensor([[1, 1, 0, 0, 1], [1, 0, 0, 1, 1], [0, 0, 1, 1, 0]]) - 0.5)
    assert kernel.tolist() == [[5, 3, 0], [3, 5, 2], [0, 2, 5]]
    assert np.linalg.slogdet(kernel)[1] == pytest.approx(4.0943445622)


def test_reference_arrays() -> None:
    path = SHARED / "golden" / "vision_naswot.npz"
    if not path.exists():
        pytest.skip(f"no reference arrays at {path}; set THRIFTY_SHARED")
    held = np.load(path)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3))
    model.load_state_dict({key[2:]: torch.from_numpy(held[key]) for key in held if key.startswith("w/")})
    batch = torch.from_numpy(held["in/x"])
    assert np.array_equal(agreement(model, batch), held["out/K"])
    assert naswot(model, [batch]) == pytest.approx(float(held["out/score"]), abs=1e-5)
    order = [3, 1, 0, 2, 7, 6, 5, 4]
    assert np.array_equal(agreement(model, batch[order]), held["out/K"][np.ix_(order, order)])


def test_what_counts() -> None:
    model, batch = network().train(), torch.randn(8, 6)
    assert np.diag(agreement(model, batch)).tolist() == [32 + 24] * 8
    wide = agreement(model, batch, "dery")  # outputs of Linear, ReLU, Dropout
    assert np.diag(wide).tolist() == [32 + 32 + 32 + 24 + 24 + 3] * 8
    assert naswot(model, [batch], "dery") == pytest.approx(np.linalg.slogdet(wide)[1] / 8)
    assert all(m.training for m in model.modules()) and not any(m._forward_hooks for m in model.modules())
    more = torch.randn(8, 6)
    assert naswot(model, [batch, more]) == pytest.approx((naswot(model, [batch]) + naswot(model, [more])) / 2)
    assert naswot(model, [{"input": batch}]) == naswot(model, [(batch,)]) == naswot(model, [batch])


def test_inputs_with_the_same_codes_are_finite_and_counted() -> None:
    batch = torch.randn(4, 6)
    twins = naswot(network(), [torch.cat([batch, batch])])
    assert np.isfinite(twins) and twins.details["singular"] == 1 and twins < naswot(network(), [torch.randn(8, 6)])


def test_windows_of_one_input_count_as_that_input() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(x.reshape(-1, 2))

    x = torch.randn(4, 6)
    assert np.array_equal(agreement(Windows(), x), count_agreements(x))


def test_what_is_refused() -> None:
    batch = torch.randn(4, 6)
    with pytest.raises(Unfit, match="no module that NASWOT's variant 'original' counts"):
        naswot(nn.Sequential(nn.Linear(6, 2), nn.GELU()), [batch])
    with pytest.raises(NoSuchSetting, match="dery"):
        naswot(network(), [batch], "derry")
    with pytest.raises(BadData):
        naswot(network(), [])

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x)

    with pytest.raises(Unfit, match="runs none"):
        naswot(Idle(), [batch])

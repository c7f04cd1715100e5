"""The contract catches methods that break a promise: each of these is LoRA with one mistake."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from thrifty.core import Method, Site, register
from thrifty.methods import LoRA
from thrifty.methods.lora import LowRank
from thrifty.testing import contract, tiny


@register("broken-start")
class Start(LowRank):
    def __init__(self, site: Site, **numbers: Any):
        super().__init__(site, **numbers)
        nn.init.normal_(self.B)


@register("broken-idle")
class Idle(LowRank):
    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return y + 0.0 * super().forward(y, x)


@register("broken-unused")
class Unused(LowRank):
    def __init__(self, site: Site, **numbers: Any):
        super().__init__(site, **numbers)
        self.extra = nn.Parameter(torch.zeros(3))


@register("broken-merge")
class Merge(LowRank):
    def delta(self, weight: Tensor) -> Tensor:
        return 2 * super().delta(weight)


@register("broken-base")
class Base(LowRank):
    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.site.module.bias += 1e-6
        return super().forward(y, x)


@register("broken-state")
class State(LowRank):
    def __init__(self, site: Site, **numbers: Any):
        super().__init__(site, **numbers)
        self.mix = torch.randn(site.dout)  # a tensor that no state_dict knows

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return y + self.mix * (super().forward(y, x) - y)


@register("broken-seed")
class Seed(LowRank):
    def __init__(self, site: Site, **numbers: Any):
        super().__init__(site, **numbers)
        torch.manual_seed(0)
        nn.init.normal_(self.A)


@register("broken-precision")
class Precision(LowRank):
    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return super().forward(y.float(), x.float())


@dataclass
class Broken(LoRA):
    name = "broken"
    rank: int = 2


CASES: list[tuple[type[LowRank], contract.Promise]] = [
    (Start, contract.starts_as_promised), (Idle, contract.acts), (Unused, contract.sends_gradients), (Merge, contract.merges),
    (Base, contract.keeps_the_base), (Base, contract.restores), (State, contract.keeps_its_state),
    (Seed, contract.draws_from_its_seed), (Precision, contract.takes_bfloat16)]


@pytest.mark.parametrize(("edit", "promise"), [pytest.param(e, p, id=f"{e.__name__}-{p.__name__}") for e, p in CASES])
def test_a_broken_method_is_caught(edit: type[LowRank], promise: contract.Promise, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broken, "Edit", edit)
    method: Method = Broken()
    with pytest.raises((AssertionError, RuntimeError)):
        promise(method, tiny.make("bert"))
    monkeypatch.setattr(Broken, "Edit", LowRank)
    promise(method, tiny.make("bert"))


def test_check_stops_at_the_first_broken_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broken, "Edit", Idle)
    with pytest.raises(AssertionError, match=r"move bert by only 0\.0e\+00"):
        contract.check(Broken(), tiny.make("bert"))

"""Methods that settle everything when they are attached: nothing trains, and everything else holds."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thrifty
from thrifty.core import Attachment, Edit, Method, Site, register
from thrifty.core.errors import NothingTrains
from thrifty.testing import check, tiny


@register("test-kept-mean")
class KeptMean(Edit):
    """y minus a kept mean [dout]."""

    mean: Tensor

    def __init__(self, site: Site):
        super().__init__(site)
        self.register_buffer("mean", torch.zeros(site.dout))

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return (y - self.mean).to(y.dtype)


@dataclass
class Centred(Method):
    """Keeps the mean of what a layer gives out."""

    name = "test-centred"
    identity_at_start = False
    solved = True
    where: str = "mlp.out"

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        for site in at.sites(self.where):
            made: Any = at.put(site, KeptMean)
            made.mean.copy_(torch.linspace(-0.5, 0.4, site.dout))


class Trained(Centred):
    """The same, which says that it trains."""

    name = "test-centred-trained"
    solved = False


class Empty(Centred):
    """Nothing at all."""

    name = "test-empty"

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        pass


def test_it_keeps_every_promise() -> None:
    check(Centred(), tiny.make("vit"), skip=("compiles",))


def test_it_is_saved_and_loaded(tmp_path: Any) -> None:
    backbone = tiny.make("vit")
    model = backbone.fresh()
    at = thrifty.attach(model, Centred())
    assert not at.parameters() and at.summary().trainable == 0
    at.save(tmp_path / "adapter")
    fresh = backbone.fresh()
    thrifty.load(fresh, tmp_path / "adapter")
    assert torch.equal(backbone.output(fresh), backbone.output(model))


@pytest.mark.parametrize("method", [Trained(), Empty()])
def test_others_must_train_something(method: Method) -> None:
    with pytest.raises(NothingTrains, match="nothing trains"):
        thrifty.attach(nn.Sequential(nn.Linear(2, 2)) if isinstance(method, Empty) else tiny.make("vit").fresh(), method)

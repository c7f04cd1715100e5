"""The port around a site: an edit there decides whether, and on what, the site runs; no trace is left when it goes."""
from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from thrifty.composition import compose
from thrifty.core import Attachment, Edit, Method, Site, attach, register
from thrifty.core.errors import CannotCombine, CannotMerge

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


@register("test-some-rows")
class SomeRows(Edit):
    """scale · the site's answer on the first ``rows`` rows, which alone it sees; zero elsewhere."""

    port = "around"

    def __init__(self, site: Site, rows: int):
        super().__init__(site)
        self.rows, self.scale = rows, nn.Parameter(torch.ones(()))

    def forward(self, run: Any, x: Tensor) -> Tensor:
        y = x.new_zeros(len(x), 3)
        if self.rows:
            y[: self.rows] = self.scale * run(x[: self.rows])
        return y


class Some(Method):
    name = "test-some"

    def attach(self, at: Attachment, batches: Any = None) -> None:
        at.put(at.sites("1")[0], SomeRows, rows=2)


class Counted(nn.Linear):
    """Remembers how many rows it was given."""

    def forward(self, input: Tensor) -> Tensor:
        self.given = len(input)
        return super().forward(input)


def model() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), Counted(3, 3), nn.ReLU())


def test_the_site_sees_only_what_it_is_given() -> None:
    net = model()
    whole = net(X)
    at = attach(net, Some(), example=X)
    y = net(X)
    assert net[1].given == 2 and torch.equal(y[:2], whole[:2]) and not y[2:].any()
    edit = next(iter(at.edits.values()))
    edit.rows, net[1].given = 0, None
    assert not net(X).any() and net[1].given is None  # it did not run at all
    edit.rows = 4
    assert torch.equal(net(X), whole)
    net(X).sum().backward()
    assert edit.scale.grad is not None
    at.disable()
    assert "forward" not in net[1].__dict__ and torch.equal(net(X), whole)
    at.enable()
    at.detach()
    assert "forward" not in net[1].__dict__ and not hasattr(net[1], "edits")


def test_two_attachments_stand_around_each_other() -> None:
    net = model()
    one, two = (attach(net, Some(), name, example=X) for name in ("one", "two"))
    next(iter(one.edits.values())).rows = 1
    with torch.no_grad():
        next(iter(two.edits.values())).scale.fill_(3.0)
    inner = net[1](X)
    assert net[1].given == 1
    one.detach()
    assert torch.equal(net[1](X)[:1], inner[:1]) and net[1].given == 2
    two.detach()


def test_copies_pickles_and_patches_of_others() -> None:
    net = model()
    patch = lambda input: 2 * Counted.forward(net[1], input)  # noqa: E731
    wanted = inspect.signature(net[1].forward)
    at = attach(net, Some(), example=X)
    assert inspect.signature(net[1].forward) == wanted
    y = net(X)
    twin = copy.deepcopy(net)
    assert twin[1].forward.module is twin[1]
    assert torch.equal(twin(X), y) and torch.equal(pickle.loads(pickle.dumps(net))(X), y)
    at.detach()
    net[1].forward = patch  # as tools that move weights between devices do
    doubled = net[1](X)
    at = attach(net, Some(), example=X)
    assert torch.equal(net[1](X)[:2], doubled[:2])
    at.detach()
    assert net[1].__dict__["forward"] is patch


def test_compiled_into_one_graph() -> None:
    net = model()
    attach(net, Some(), example=X)
    torch._dynamo.reset()
    compiled: Any = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X), net(X))
    torch._dynamo.reset()


def test_it_is_neither_merged_nor_composed() -> None:
    net = model()
    at = attach(net, Some(), example=X)
    with pytest.raises(CannotMerge, match="SomeRows"):
        at.merge()
    at.detach()
    with pytest.raises(CannotCombine, match="test-some-rows"):
        compose(net, Some())

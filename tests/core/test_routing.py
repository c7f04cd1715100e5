"""Which task a batch belongs to: told by name or number, heard by the edits of every attachment that knows tasks."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thrifty
from thrifty.core import Attachment, Edit, Method, Site, register
from thrifty.core.errors import NoSuchSetting, ThriftyError


@register("test-shift-per-task")
class Shift(Edit):
    def __init__(self, site: Site, tasks: int):
        super().__init__(site)
        self.shift = nn.Parameter(torch.arange(float(tasks)).repeat(site.dout, 1).T.contiguous())

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return y + self.shift[self.context.which()]


@dataclass
class Shifts(Method):
    name = "shifts"

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        for site in at.sites("linear"):
            at.put(site, Shift, tasks=len(at.tasks))


def _attached() -> tuple[nn.Module, Tensor, thrifty.Attachment]:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4)), torch.randn(2, 3)
    return model, x, thrifty.attach(model, Shifts(), example=x, tasks=["rte", "mrpc", "cola"])


def test_by_name_by_number_and_by_row() -> None:
    model, x, at = _attached()
    with at.disabled():
        base = model(x)
    for told in ("mrpc", 1, torch.tensor(1)):
        with thrifty.task(model, told):
            torch.testing.assert_close(model(x), base + 1)
    for rows in (["cola", "rte"], [2, 0], torch.tensor([2, 0])):
        with thrifty.task(model, rows):
            torch.testing.assert_close(model(x), base + torch.tensor([[2.0], [0.0]]))


def test_nothing_is_assumed_when_nothing_was_told(tmp_path: Path) -> None:
    model, x, at = _attached()
    with pytest.raises(ThriftyError, match="say which"):
        model(x)
    with thrifty.task(model, "cola"):
        pass
    with pytest.raises(ThriftyError, match="say which"):
        model(x)
    at.save(tmp_path / "adapter", unchanged=True)
    at.detach()
    loaded = thrifty.load(model, tmp_path / "adapter", example=x)  # a method of one's own is found again, as it is defined
    assert loaded.tasks == ["rte", "mrpc", "cola"] and isinstance(loaded.method, Shifts)
    with pytest.raises(ThriftyError, match="say which"):
        model(x)


@pytest.mark.parametrize("told", ["rt", 3, -1, True, ["rte", "sst2"], torch.tensor([0, 3]), torch.tensor([-1])])
def test_a_task_that_there_is_not(told: Any) -> None:
    model, _, _ = _attached()
    with pytest.raises(NoSuchSetting, match="'default' has no task"), thrifty.task(model, told):
        pass


def test_tasks_have_different_names() -> None:
    for tasks in ("rte", ["a", "a"], ["a", ""]):
        with pytest.raises(NoSuchSetting, match="different names"):
            thrifty.attach(nn.Linear(2, 2), Shifts(), tasks=tasks)


def test_a_model_that_knows_no_tasks() -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(NoSuchSetting, match="nothing on this Sequential knows tasks"), thrifty.task(model, "rte"):
        pass

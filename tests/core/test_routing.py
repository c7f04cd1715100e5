"""Which task a batch belongs to: told by name or number, heard by the edits of every attachment that knows tasks."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import thrifty
from thrifty.core import Attachment, Edit, Method, Site, by_task, register
from thrifty.core.errors import NoSuchSetting, NothingTrains, ThriftyError, Unfit
from thrifty.core.watch import occasional


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


@register("test-scale-per-task")
class Scale(Edit):
    per_task = ("scales",)

    def __init__(self, site: Site, tasks: int, unused: bool = False):
        super().__init__(site)
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(site.dout)) for _ in range(tasks))
        self.unused = nn.Parameter(torch.zeros(1)) if unused else None

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return by_task(self.context.which(), lambda task, rows: rows * self.scales[task], y)


@dataclass
class Scales(Method):
    name = "scales"
    multitask = True

    unused: bool = False
    table: dict[str, float] = field(default_factory=dict)
    where: str = "linear"

    def attach(self, at: Attachment, batches: Iterable[Any] | None = None) -> None:
        for site in at.sites(self.where):
            at.put(site, Scale, tasks=len(at.tasks), unused=self.unused)

    def more_tasks(self, at: Attachment, tasks: list[str]) -> None:
        for row in at.plan:
            at.edits[row.key].scales.extend(nn.Parameter(torch.full((4,), self.table[task])) for task in tasks)
            row.numbers = {**row.numbers, "tasks": row.numbers["tasks"] + len(tasks)}


def test_a_method_that_tells_tasks_apart_wants_their_names() -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(NoSuchSetting, match="tasks="):
        thrifty.attach(model, Scales(), example=torch.randn(2, 3))
    assert not thrifty.attachments(model) and model[0].weight.requires_grad


def test_rows_go_to_their_own_task_and_come_back_in_order() -> None:
    h, mask = torch.arange(5.0)[:, None].repeat(1, 2), torch.arange(5.0)[:, None] / 10
    seen = []

    def act(task: int, rows: Tensor, beside: Tensor | None, single: Tensor | None) -> Tensor:
        seen.append((task, len(rows), None if beside is None else len(beside), None if single is None else len(single)))
        return rows + 100 * task + (0 if beside is None else beside)

    expected = h + mask + torch.tensor([200.0, 0, 200, 100, 0])[:, None]
    assert torch.equal(by_task(torch.tensor([2, 0, 2, 1, 0]), act, h, mask, torch.zeros(1, 2)), expected)
    assert sorted(seen) == [(0, 2, 2, 1), (1, 1, 1, 1), (2, 2, 2, 1)]
    assert torch.equal(by_task(1, act, h, None, None), h + 100)
    with pytest.raises(ThriftyError, match="of 3 rows were told, but 5 rows"):
        by_task(torch.tensor([0, 0, 1]), act, h, None, None)


def test_tensors_of_other_tasks_may_go_without_gradients_and_no_others() -> None:
    for unused in (False, True):
        model, x = nn.Sequential(nn.Linear(3, 4)), torch.randn(2, 3)
        at = thrifty.attach(model, Scales(unused=unused), example=x, tasks=["a", "b"])
        assert {n.rpartition(":")[2] for n in occasional(at)} == {"scales.0", "scales.1"}
        with thrifty.task(model, "b"):
            for _ in range(2):
                model(x).sum().backward()
            if unused:
                with pytest.raises(NothingTrains, match=r"\['edit:0#test-scale-per-task:unused'\]"):
                    model(x).sum().backward()
                continue
            for _ in range(3):
                model(x).sum().backward()
        assert at.edits["0#test-scale-per-task"].scales[0].grad is None
        assert at.watch is not None and at.watch.unreached == ["edit:0#test-scale-per-task:scales.0"]


def test_a_task_that_joins_later(tmp_path: Any) -> None:
    model, x = nn.Sequential(nn.Linear(3, 4)), torch.randn(2, 3)
    at = thrifty.attach(model, Scales(), example=x, tasks=["a", "b"])
    thrifty.add_tasks(at, ["c"], table={"c": 3.0})
    assert at.tasks == ["a", "b", "c"] and at.method.table == {"c": 3.0}
    with thrifty.task(model, "a"):
        once = model(x)
    with thrifty.task(model, "c"):
        for _ in range(3):
            model(x).sum().backward()
        torch.testing.assert_close(model(x), 3 * once)
    assert at.watch is not None and len(at.watch.unreached) == 2
    at.save(tmp_path / "adapter", unchanged=True)
    at.detach()
    again = thrifty.load(model, tmp_path / "adapter", example=x)
    assert again.tasks == ["a", "b", "c"]
    with thrifty.task(model, "c"):
        torch.testing.assert_close(model(x), 3 * once)


def test_tasks_that_cannot_join() -> None:
    model, _, at = _attached()
    with pytest.raises(Unfit, match="shifts serves the tasks that it was attached with"):
        thrifty.add_tasks(at, ["sst2"])
    with pytest.raises(NoSuchSetting, match="different names"):
        thrifty.add_tasks(at, ["rte"])
    with pytest.raises(NoSuchSetting, match="no table 'features'"):
        thrifty.add_tasks(at, ["sst2"], features={})
    assert at.tasks == ["rte", "mrpc", "cola"]
    x = torch.randn(2, 3)
    other = thrifty.attach(nn.Sequential(nn.Linear(3, 4)), Scales(table={"a": 1.0}), example=x, tasks=["a"])
    with pytest.raises(NoSuchSetting, match=r"table\['a'\] is 1.0 already"):
        thrifty.add_tasks(other, ["b"], table={"a": 2.0, "b": 1.0})
    plain = thrifty.attach(nn.Sequential(nn.Linear(3, 4)), thrifty.LoRA(where="linear"), example=x)
    with pytest.raises(NoSuchSetting, match="does not tell tasks apart"):
        thrifty.add_tasks(plain, ["b"])

"""Base parameters of which only some entries train: in memory, in copies, and in the file."""
from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import thrifty
from thrifty.core import Attachment
from thrifty.core.errors import BrokenArtifact
from thrifty.core.sparse import mask_at, positions


class Few(thrifty.Method):
    """Trains the first row of the first layer, and all of the second."""

    name = "few-entries"

    def attach(self, at: Attachment, batches: object = None) -> None:
        mask = torch.zeros(3, 4, dtype=torch.bool)
        mask[0] = True
        at.train("0.weight", mask)
        at.train("1.weight")


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


def train(model: nn.Module, at: Attachment) -> None:
    optimiser = torch.optim.SGD(at.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        model(torch.arange(8.0).view(2, 4)).square().sum().backward()
        optimiser.step()


def moved(model: nn.Module, name: str) -> Tensor:
    now: Tensor = dict(model.named_parameters())[name] != dict(fresh.named_parameters())[name]
    return now


fresh = model()


def test_positions_and_masks_are_two_forms_of_one_thing() -> None:
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) < 0.3
    where = positions(mask)
    assert where.dtype == torch.int32 and where.tolist() == [i for i, kept in enumerate(mask.flatten()) if kept]
    assert torch.equal(mask_at(where, torch.empty(5, 7), "w"), mask)
    assert not mask_at(positions(torch.zeros(3, dtype=torch.bool)), torch.empty(3), "w").any()


@pytest.mark.parametrize("where", [torch.tensor([0, 12]), torch.tensor([-1, 2]), torch.tensor([3, 3]), torch.tensor([4, 2]),
                                   torch.tensor([0.5]), torch.tensor([[1, 2]]), torch.ones(12, dtype=torch.bool)])
def test_what_are_no_positions(where: Tensor) -> None:
    with pytest.raises(BrokenArtifact, match="'w' is not given by rising positions in its 12 entries"):
        mask_at(where, torch.empty(3, 4), "w")


def test_the_file_holds_the_entries_that_train_and_no_others(tmp_path: Path) -> None:
    made = model()
    at = thrifty.attach(made, Few(), example=torch.ones(1, 4))
    train(made, at)
    assert moved(made, "0.weight")[0].any() and not moved(made, "0.weight")[1:].any()
    at.save(tmp_path / "a")
    held = json.loads((tmp_path / "a" / "adapter.json").read_text())["tensors"]
    assert held["entries:0.weight"]["shape"] == [4] == held["base:0.weight"]["shape"] and "mask:0.weight" not in held
    again = model()
    loaded = thrifty.load(again, tmp_path / "a")
    assert torch.equal(again(torch.ones(1, 4)), made(torch.ones(1, 4)))
    train(again, loaded)
    assert not moved(again, "0.weight")[1:].any()


def test_a_state_brings_its_entries_along() -> None:
    made, other = model(), model()
    at, again = (thrifty.attach(m, Few(), example=torch.ones(1, 4)) for m in (made, other))
    train(made, at)
    last = torch.zeros(3, 4, dtype=torch.bool)
    last[2, :2] = True
    at.restrict("0.weight", last)
    again.load_state(at.state())
    assert torch.equal(other(torch.ones(1, 4)), made(torch.ones(1, 4)))
    before = other[0].weight.detach().clone()
    train(other, again)
    assert torch.equal(other[0].weight != before, last)
    short = {**at.state(), "base:0.weight": torch.zeros(3)}
    with pytest.raises(BrokenArtifact, match=r"'base:0.weight' has shape \(3,\), the model wants \(2,\)"):
        again.load_state(short)
    with pytest.raises(BrokenArtifact, match="the tensor 'entries:0.weight' is missing"):
        again.load_state({k: v for k, v in at.state().items() if not k.startswith("entries")})


def test_a_copy_trains_the_same_entries() -> None:
    made = model()
    thrifty.attach(made, Few(), example=torch.ones(1, 4))
    twin = copy.deepcopy(made)
    train(twin, thrifty.attachments(twin)["default"])
    assert moved(twin, "0.weight")[0].any() and not moved(twin, "0.weight")[1:].any()
    assert not moved(made, "0.weight").any()


def test_restricting_gives_the_rest_back() -> None:
    made = model()
    at = thrifty.attach(made, Few(), example=torch.ones(1, 4))
    train(made, at)
    one = torch.zeros(2, 3, dtype=torch.bool)
    one[1, 2] = True
    at.restrict("1.weight", one)
    at.restrict("0.weight", torch.zeros(3, 4, dtype=torch.bool))
    assert torch.equal(moved(made, "1.weight"), one) and not moved(made, "0.weight").any()
    assert list(at.base) == ["1.weight"] and not made[0].weight.requires_grad and at.revision == 2
    train(made, at)
    assert torch.equal(moved(made, "1.weight"), one) and at.summary().in_place == 1
    at.detach()
    assert not moved(made, "1.weight").any()


def test_an_edit_that_has_done_its_work_is_taken_away() -> None:
    made = model()
    at = thrifty.attach(made, thrifty.LoRA(rank=1, where="linear"), example=torch.ones(1, 4))
    first, second = at.edits
    at.take_away(first)
    assert list(at.edits) == [second] == [row.key for row in at.plan] and not hasattr(made[0], "edits")
    assert {n.split(":")[1] for n in at.state()} == {second} and at.revision == 1
    train(made, at)
    at.detach()
    assert torch.equal(made(torch.ones(1, 4)), fresh(torch.ones(1, 4)))

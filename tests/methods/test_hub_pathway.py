"""Hub-Pathway: which models see which pictures, and what that teaches them."""
from __future__ import annotations

import math

import pytest
import small_zoos as small
import torch
import torch.nn.functional as F
from torch import nn

import thrifty
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.methods.depth.flops import flops
from thrifty.methods.hub_pathway import evenness
from thrifty.testing import PROMISES, contract
from thrifty.testing.measuring import Weighed
from thrifty.zoo.pathway import OwnHeads, Pathway

EXAMPLE = {"pixel_values": small.pictures(2, 3)}


def attached(top: int = 2, models: int = 3, **more: float) -> tuple[nn.Module, thrifty.Attachment, Pathway]:
    zoo = small.zoo(small.resnet(1, depths=(1, 1)), small.vit(2, layers=1), *(small.mobilenet(i) for i in range(models - 2)))
    at = thrifty.attach(zoo, thrifty.HubPathway(top=top, **more), example=EXAMPLE)
    choice = next(e for e in at.edits.values() if isinstance(e, Pathway))
    with torch.no_grad():
        choice.choose.weight.mul_(30.0)  # pictures differ in what they choose
        for layer in choice.look:
            layer[0].weight.mul_(2.0)
    return zoo, at, choice


class Classes(Weighed):
    """Cross-entropy on the pictures of a batch."""

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
        return F.cross_entropy(model(batch["pixel_values"])["logits"], batch["labels"]), len(batch["labels"])


def test_all_models_make_a_weighted_ensemble() -> None:
    zoo, at, choice = attached(top=3)
    x = small.pictures(5)
    with torch.no_grad():
        w = choice.weigh(x)
        parts = [f(x) for f in (lambda v: zoo.trunk.base0(v).logits, lambda v: zoo.trunk.base1(v).logits,
                                lambda v: zoo.trunk.base2(v).logits)]
        blocks = zoo.head.weight.split(zoo.trunk.widths, 1)
        wanted = sum(w[:, i, None] * (f @ blocks[i].T) for i, f in enumerate(parts)) + zoo.head.bias
        assert torch.allclose(zoo(x)["logits"], wanted, atol=1e-5)
        assert torch.allclose(w.sum(1), torch.ones(5))
        assert torch.equal(zoo(x)["logits"], zoo(x)["logits"]), "evaluation leaves nothing to chance"


def test_shares_of_chosen_models_sum_to_one_and_others_do_not_run() -> None:
    zoo, _, choice = attached(top=1)
    x = small.pictures(12)
    ran: dict[int, int] = {}
    for i in range(3):
        zoo.trunk.base(i).register_forward_pre_hook(lambda m, args, i=i: ran.__setitem__(i, len(args[0])))
    with torch.no_grad():
        w = choice.weigh(x)
        r = choice.route(w)
        assert torch.allclose(r.sum(1), torch.ones(12)) and int((r > 0).sum()) == 12
        zoo(x)
    assert ran == {i: n for i in range(3) if (n := int((w.argmax(1) == i).sum()))} and sum(ran.values()) == 12
    two = attached(top=2)[2].route(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]]))
    assert torch.allclose(two, torch.tensor([[0.625, 0.375, 0.0], [0.0, 1 / 3, 2 / 3]]))


def test_a_model_learns_from_its_own_pictures_alone() -> None:
    zoo, _, choice = attached(top=1)
    x = small.pictures(12)
    chosen = choice.weigh(x).argmax(1)
    one = int(chosen[0])
    x.requires_grad_(True)
    row = int((chosen == one).nonzero()[0])
    zoo(x)["logits"][row].sum().backward()
    for i in range(3):
        reached = any(p.grad is not None and bool(p.grad.any()) for p in zoo.trunk.base(i).parameters())
        assert reached == (i == one)


def test_the_loss_has_its_three_parts() -> None:
    zoo, at, choice = attached(top=2, exploit=0.7, explore=0.3)
    batch = {"pixel_values": small.pictures(6), "labels": torch.tensor([0, 1, 2, 0, 1, 2])}
    with torch.no_grad():
        choice.noise.weight.zero_()
        choice.noise.bias.fill_(-200.0)  # softplus of which is 0: no noise
        found, count = at.method.loss(at, Classes(small.backbone(zoo)), zoo, batch)
        w = choice.weigh(batch["pixel_values"])
        r, heads = choice.route(w), next(e for e in at.edits.values() if isinstance(e, OwnHeads)).heads
        own = 0.0
        for b in range(6):
            for i in range(3):
                if r[b, i] > 0:
                    f = zoo.trunk.see(i, batch["pixel_values"][b : b + 1])
                    own += float(F.cross_entropy(heads[i](f), batch["labels"][b : b + 1]))
        mean = w.mean(0)
        wanted = F.cross_entropy(zoo(batch["pixel_values"])["logits"], batch["labels"]) + 0.7 * own / 6 \
            + 0.3 * float((mean * mean.log()).sum())
    assert count == 6 and float(found) == pytest.approx(float(wanted), abs=1e-4)


def test_evenness_is_log_m_at_most() -> None:
    assert float(evenness(torch.full((4, 3), 1 / 3))) == pytest.approx(math.log(3))
    assert float(evenness(torch.eye(3))) == pytest.approx(math.log(3)), "each is chosen once"
    assert float(evenness(torch.tensor([[1.0, 0.0, 0.0]] * 4))) == pytest.approx(0.0, abs=1e-9)


def test_training_explores_and_what_is_left_fits_a_fresh_zoo(tmp_path) -> None:
    zoo, at, choice = attached()
    x = small.pictures(4)
    with choice.explore():
        assert not torch.equal(choice.weigh(x), choice.weigh(x))
    at.method.finish(at)
    assert not any(isinstance(e, OwnHeads) for e in at.edits.values())
    at.save(tmp_path / "adapter")
    fresh = small.zoo(small.resnet(1, depths=(1, 1)), small.vit(2, layers=1), small.mobilenet(0))
    thrifty.load(fresh, tmp_path / "adapter")
    assert torch.equal(fresh(x)["logits"], zoo(x)["logits"])


def test_more_than_there_are_cannot_be_chosen() -> None:
    with pytest.raises(NoSuchSetting, match="top must be at most 3"):
        attached(top=4)
    with pytest.raises(NoSuchSetting, match="top must be at least 1"):
        attached(top=0)


def test_limits_are_on_the_dearest_choice() -> None:
    zoo, at, choice = attached(top=2)
    parameters = sum(p.numel() for p in zoo.parameters()) - sum(
        p.numel() for e in at.edits.values() if isinstance(e, OwnHeads) for p in e.parameters())
    one = {"pixel_values": small.pictures(1)}
    costs = []
    for pair in ([0, 1], [0, 2], [1, 2]):
        with torch.no_grad():
            choice.choose.bias.copy_(torch.tensor([1e4 * (i in pair) for i in range(3)]))
        costs.append(flops(zoo, one) // 2)
    attached(top=2, params=parameters / 1e6, flops=max(costs) / 1e9)
    with pytest.raises(Unfit, match="M parameters"):
        attached(top=2, params=(parameters - 1) / 1e6)
    with pytest.raises(Unfit, match="G operations"):
        attached(top=2, flops=(max(costs) - 1) / 1e9)


@pytest.mark.parametrize("promise", [p for p in PROMISES if p is not contract.routes_rows], ids=lambda p: p.__name__)
def test_promises(promise: contract.Promise) -> None:
    promise(thrifty.HubPathway(), small.backbone(small.zoo(small.resnet(1, depths=(1, 1)), small.vit(2, layers=1))))

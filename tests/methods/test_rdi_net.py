"""RDI-Net: three ways through a block, routers that know of those before, and what is not computed."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from backbones import count, shake, tiny
from torch import Tensor

import thrifty
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.core.hooks import main
from thrifty.methods.depth.flops import flops
from thrifty.methods.depth.relational_router import ROUTES, forcing
from thrifty.methods.rdi_net import routers_of, usage

X = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(3))
KINDS: dict[str, dict[str, Any]] = {"basic": {"hidden_sizes": [8, 16], "depths": [2, 2]},
                                    "bottleneck": {"hidden_sizes": [16, 32], "depths": [1, 2], "layer_type": "bottleneck"}}


class Classify:
    """Cross-entropy, as a task for pictures computes it."""

    def inputs(self, model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"pixel_values": batch["pixel_values"]}

    def loss(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        return F.cross_entropy(main(model(**self.inputs(model, batch))), batch["labels"]), len(batch["labels"])


def put(kind: str, **settings: Any) -> tuple[Any, thrifty.Attachment]:
    model = tiny("resnet", num_labels=3, **KINDS[kind])
    return model, thrifty.attach(model, thrifty.RDINet(**{"trunk": "frozen", **settings}), example={"pixel_values": X[:2]})


def blocks(model: Any) -> list[Any]:
    return [block for stage in model.resnet.encoder.stages for block in stage.layers]


def head(model: Any, h: Tensor) -> Tensor:
    return model.classifier(h.mean((2, 3), keepdim=True))


def mixed(block: Any, x: Tensor, r: Tensor) -> Tensor:
    """A block whose ways have the weights r [B, 3], layer by layer."""
    def layer(i: int, h: Tensor) -> Tensor:
        own = block.layer[i]
        return own.activation(own.normalization(own.convolution(h)))

    short = block.shortcut(x)
    r = r[:, :, None, None]
    one = layer(0, x)
    if len(block.layer) == 2:
        return torch.relu(short + r[:, 1:2] * one + r[:, 2:3] * layer(1, one))
    two = layer(1, one)
    if two.shape[-1] < one.shape[-1]:
        one = F.max_pool2d(one, 3, stride=2, padding=1)
    return torch.relu(short + r[:, 1:2] * layer(2, one) + r[:, 2:3] * layer(2, two))


def route(router: Any, x: Tensor, before: list[Tensor]) -> Tensor:
    """The logits of a router in evaluation mode."""
    norm, f = router.norm, x.mean((2, 3)) @ router.first.weight.T + router.first.bias
    f = (f - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    h = torch.relu(f) @ router.second.weight.T + router.second.bias
    three = [*before[-2:], h]
    while len(three) < 3:
        three.insert(0, three[0])
    support = torch.stack(three, 1) @ router.G
    adjacency = torch.tensor([[1, .5, .25], [.5, 1, .5], [.25, .5, 1]])
    return torch.einsum("mn,bnj->bmj", adjacency, support)[:, 2] @ router.third.weight.T + router.third.bias


@pytest.mark.parametrize("kind", list(KINDS))
def test_pictures_go_ways_of_their_own(kind: str) -> None:
    model, at = put(kind)
    shake(at, 0.5)
    with torch.no_grad():
        quick = model(pixel_values=X).logits
        seen = torch.stack(list(at.context.taps[ROUTES].values()), 1)
    slow = model(pixel_values=X).logits
    alone = []
    with torch.no_grad():
        for i in range(6):
            alone.append(model(pixel_values=X[i : i + 1]).logits[0])
        routers = routers_of(at)
        at.disable()
        h, before, ways = model.resnet.embedder(X), [], []
        for block, router in zip(blocks(model), routers, strict=True):
            logits = route(router, h, before)
            before.append(logits.softmax(-1))
            ways.append(logits.argmax(-1))
            h = mixed(block, h, F.one_hot(ways[-1], 3).float())
        wanted = head(model, h)
    torch.testing.assert_close(seen, torch.stack(before, 1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(seen.sum(-1), torch.ones(seen.shape[:2]))
    for found in (quick, slow.detach(), torch.stack(alone)):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert len(torch.stack(ways).unique()) > 1


@pytest.mark.parametrize("kind", list(KINDS))
def test_forced_ways(kind: str) -> None:
    model, at = put(kind)
    with torch.no_grad():
        answers, counted = [], []
        for way in range(3):
            with forcing(routers_of(at), way):
                answers.append(model(pixel_values=X).logits)
                counted.append(flops(model, {"pixel_values": X[:1]}))
        at.disable()
        assert torch.equal(model(pixel_values=X).logits, answers[2])  # the full way is the network itself
        for way in (0, 1):
            h = model.resnet.embedder(X)
            for block in blocks(model):
                h = mixed(block, h, F.one_hot(torch.full((6,), way), 3).float())
            torch.testing.assert_close(head(model, h), answers[way], atol=1e-5, rtol=1e-5)
    assert counted == sorted(set(counted))


def test_a_way_that_nobody_goes_is_not_computed() -> None:
    model, at = put("bottleneck")
    ran: list[tuple[int, int]] = []
    for block in blocks(model):
        for i, layer in enumerate(block.layer):
            layer.register_forward_hook(lambda m, a, out, i=i: ran.append((i, len(out))))
    with torch.no_grad():
        for router, way in zip(routers_of(at), (0, 1, 2), strict=True):
            router.third.weight.zero_()
            router.third.bias.copy_(10 * F.one_hot(torch.tensor(way), 3))
        model(pixel_values=X)
    assert ran == [(0, 6), (2, 6), (0, 6), (1, 6), (2, 6)]


@pytest.mark.parametrize("hard", [False, True])
def test_the_loss_draws_ways(hard: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, at = put("bottleneck", hard=hard, cost=0.6, target=0.3)
    shake(at, 0.5)
    batch = {"pixel_values": X, "labels": torch.tensor([0, 1, 2, 0, 1, 2])}
    noise = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(F, "gumbel_softmax", lambda logits, hard: (
        F.one_hot((logits + noise).argmax(-1), 3).float() + (s := (logits + noise).softmax(-1)) - s.detach() if hard
        else (logits + noise).softmax(-1)))
    total, items = at.method.loss(at, Classify(), model, batch)
    total.backward()
    assert items == 6 and all(p.grad is not None and p.grad.any() for p in at.parameters())
    assert ROUTES not in at.context.taps
    routers = routers_of(at)
    at.disable()
    with torch.no_grad():
        h, every = model.resnet.embedder(X), []
        for block, router in zip(blocks(model), routers, strict=True):
            soft = (route(router, h, every) + noise).softmax(-1)
            every.append(F.one_hot(soft.argmax(-1), 3).float() if hard else soft)
            h = mixed(block, h, every[-1])
        r = torch.stack(every, 1)
        used = (r[:, :, 2] + 0.5 * r[:, :, 1]).mean(1)
        torch.testing.assert_close(usage(r), used)
        wanted = F.cross_entropy(head(model, h), batch["labels"]) + 0.6 * ((used - 0.3) ** 2).mean()
    torch.testing.assert_close(total.detach(), wanted, atol=1e-4, rtol=1e-4)


def test_training_mode_and_a_batch_of_one() -> None:
    model, at = put("basic", trunk="full")
    assert not any("edits" in name for name in at.base)  # the routers' own statistics are theirs
    model.train()
    batch = {"pixel_values": X[:1], "labels": torch.tensor([1])}
    model.resnet.eval()  # whose own batch norms need more than one picture at the end
    for router in routers_of(at):
        router.train()
    at.method.loss(at, Classify(), model, batch)[0].backward()
    assert all(p.grad is not None for n, p in at.named_parameters() if n.startswith("edit:"))


def test_counts_start_and_measures() -> None:
    with torch.device("meta"):
        model = hf.ResNetForImageClassification(hf.ResNetConfig())
    at = thrifty.attach(model, thrifty.RDINet(trunk="frozen"))
    widths = [64] + [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 2  # what enters each block of a ResNet-50
    assert count(at) == sum(c * c + c + 2 * c + 3 * c + 3 + 3 * 256 + 3 * 256 + 3 for c in widths)
    small, at = put("basic")
    G = torch.cat([router.G.detach().flatten() for router in routers_of(at)])
    assert float(G.abs().max()) <= 1 / 16 and float(G.std()) == pytest.approx(1 / 16 / 3**0.5, rel=0.05)
    method: Any = at.method
    with torch.no_grad():
        method.calibrate(at, Classify(), [{"pixel_values": X[:4]}, {"pixel_values": X[4:]}])
    measured = at.about["measured"]
    assert measured["blocks"] == 4 and sum(measured["ways"]) == pytest.approx(1)
    assert measured["used"] == pytest.approx(measured["ways"][2] + measured["ways"][1] / 2)
    with torch.no_grad():
        each = [flops(small, {"pixel_values": X[i : i + 1]}) for i in range(4)]
    assert measured["flops"] == pytest.approx(sum(each) / 4)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, at = put("basic")
    shake(at, 0.5)
    at.save(tmp_path / "routers")
    fresh = tiny("resnet", num_labels=3, **KINDS["basic"])
    thrifty.load(fresh, tmp_path / "routers", example={"pixel_values": X})
    with torch.no_grad():
        assert torch.equal(fresh(pixel_values=X).logits, model(pixel_values=X).logits)


def test_refusals() -> None:
    for kind, why in (("bert", "no pictures"), ("vit", "two or three convolutions"), ("swin", "two or three convolutions")):
        with pytest.raises(Unfit, match=why):
            thrifty.attach(tiny(kind), thrifty.RDINet())
    for settings in ({"width": 0}, {"dropout": 1.0}, {"cost": -1.0}, {"target": 2.0}, {"trunk": "half"}):
        with pytest.raises(NoSuchSetting, match=next(iter(settings))):
            put("basic", **settings)


@pytest.mark.timm
def test_timm() -> None:
    timm = pytest.importorskip("timm")
    for name in ("resnet10t", "resnet26"):
        model = timm.create_model(name, num_classes=3, channels=(8, 8, 16, 16), stem_width=8).eval()
        base = model(X).detach()
        at = thrifty.attach(model, thrifty.RDINet(), example=X)
        with torch.no_grad():
            quick = model(X)
            with forcing(routers_of(at), 2):
                assert torch.equal(model(X), base)
        torch.testing.assert_close(model(X).detach(), quick, atol=1e-5, rtol=1e-5)
        at.detach()

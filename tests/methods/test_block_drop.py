"""BlockDrop: which blocks run, what paths are worth, what each part of the training moves."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import count, shake, tiny
from torch import Tensor, nn

import thrifty
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.core.hooks import main
from thrifty.methods.block_drop import block_flops, policy_of
from thrifty.methods.depth.block_policy import bounded, build, reward
from thrifty.methods.depth.flops import flops

DEEP: dict[str, dict[str, Any]] = {
    "vit": {"num_hidden_layers": 4}, "dinov2": {"num_hidden_layers": 3},
    "resnet": {"hidden_sizes": [8, 16], "depths": [2, 2]}, "bottleneck": {"hidden_sizes": [16, 32], "depths": [1, 2],
                                                                          "layer_type": "bottleneck"}}
X = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(3))
Y = torch.tensor([0, 1, 2, 1, 0, 2])


class Classify:
    """Cross-entropy, as a task for pictures computes it."""

    def inputs(self, model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"pixel_values": batch["pixel_values"]}

    def loss(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        return F.cross_entropy(main(model(**self.inputs(model, batch))), batch["labels"]), len(batch["labels"])


def put(kind: str, **settings: Any) -> tuple[Any, thrifty.Attachment, Tensor]:
    model = tiny("resnet" if kind == "bottleneck" else kind, num_labels=3, **DEEP[kind])
    x = X[..., :16, :16] if kind in ("vit", "dinov2") else X
    at = thrifty.attach(model, thrifty.BlockDrop(**{"policy": "resnet8", **settings}), example={"pixel_values": x[:2]})
    return model, at, x


def blocks(model: Any) -> list[Any]:
    if hasattr(model, "resnet"):
        return [block for stage in model.resnet.encoder.stages for block in stage.layers]
    return list(model.vit.layers if hasattr(model, "vit") else model.dinov2.encoder.layer)


def through(model: Any, x: Tensor, path: Tensor) -> Tensor:
    """One picture at a time through the blocks of its path, with every edit off."""
    def dropped(block: Any) -> Any:
        if hasattr(block, "shortcut"):
            return lambda h, *a, **k: block.activation(block.shortcut(h).clone())
        return lambda h, *a, **k: h

    found = []
    for picture, uses in zip(x, path, strict=True):
        gone = [block for block, u in zip(blocks(model), uses, strict=True) if not u]
        for block in gone:
            block.forward = dropped(block)
        with torch.no_grad():
            found.append(model(pixel_values=picture[None]).logits[0])
        for block in gone:
            del block.forward
    return torch.stack(found)


# -- what runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(DEEP))
def test_pictures_take_paths_of_their_own(kind: str) -> None:
    model, at, x = put(kind, joint=False)
    k = len(blocks(model))
    path = torch.rand(6, k, generator=torch.Generator().manual_seed(1)) > 0.5
    path[0], path[1] = True, False
    with policy_of(at).following(path):
        with torch.no_grad():
            quick = model(pixel_values=x).logits
        slow = model(pixel_values=x).logits
    at.disable()
    wanted = through(model, x, path)
    torch.testing.assert_close(quick, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(slow.detach(), wanted, atol=1e-5, rtol=1e-5)
    at.enable()
    with policy_of(at).following(torch.ones(6, k, dtype=torch.bool)), torch.no_grad():
        y = model(pixel_values=x).logits
    at.disable()
    with torch.no_grad():
        assert torch.equal(model(pixel_values=x).logits, y)


def test_the_policy_decides_by_one_half_for_free_blocks() -> None:
    model, at, x = put("vit", warm_up=0.0, curriculum=0.0)
    shake(at, 0.3)
    policy = policy_of(at)
    with torch.no_grad():
        s = policy.scores(x)
        assert ((s > 0.5).any() and (s < 0.5).any())
        y = model(pixel_values=x).logits
        for free in (0, 1, 3):
            policy.free.fill_(free)
            assert torch.equal(policy.greedy(s), (s > 0.5) | (torch.arange(4) < 4 - free))
        policy.free.fill_(4)
        with policy.following(s > 0.5):
            torch.testing.assert_close(model(pixel_values=x).logits, y)


def test_a_block_that_nobody_needs_is_not_computed() -> None:
    for kind in ("vit", "resnet"):
        model, at, x = put(kind)
        ran: list[tuple[int, int]] = []
        for i, block in enumerate(blocks(model)):
            part = block.mlp if hasattr(block, "mlp") else block.layer
            part.register_forward_hook(lambda m, a, out, i=i, ran=ran: ran.append((i, len(out))))
        path = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]).bool()
        with policy_of(at).following(path), torch.no_grad():
            model(pixel_values=x)
        assert ran == [(0, 6), (1, 1), (3, 3)]


def test_operations_of_blocks_and_policy() -> None:
    model, at, x = put("vit")
    counted = block_flops(at, {"pixel_values": x})
    n, d, m = 5, 16, 32
    block = 2 * n * d * d * 4 + 2 * 2 * n * n * d + 2 * 2 * n * d * m
    assert counted["block_flops"] == [block] * 4
    assert counted["rest_flops"] == 2 * 4 * (3 * 8 * 8) * d + 2 * d * 3
    with torch.no_grad():  # every block runs at first
        assert flops(model, {"pixel_values": x[:1]}) == counted["policy_flops"] + counted["rest_flops"] + 4 * block
    method: Any = at.method
    shake(at)
    policy_of(at).free.fill_(4)
    method.calibrate(at, Classify(), [{"pixel_values": x[:2]}, {"pixel_values": x[2:]}])
    with torch.no_grad():
        used = (policy_of(at).scores(x) > 0.5).double().mean(0)
    measured = at.about["measured"]
    assert measured["used"] == pytest.approx(used.tolist()) and measured["blocks_used"] == pytest.approx(float(used.sum()))
    assert measured["expected_flops"] == pytest.approx(
        counted["policy_flops"] + counted["rest_flops"] + block * float(used.sum()))


# -- what paths are worth -----------------------------------------------------------------------------------------------


def test_rewards_and_bounds() -> None:
    path = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    right = torch.tensor([True, False, True, True])
    assert reward(path, right, -5.0).tolist() == [0.75, -5.0, 0.0, 1.0]
    torch.testing.assert_close(bounded(torch.tensor([.9, .2]), 0.8), torch.tensor([.74, .32]))


def draw(monkeypatch: pytest.MonkeyPatch, path: Tensor) -> None:
    monkeypatch.setattr(torch, "bernoulli", lambda chance: path.to(chance))


@pytest.mark.parametrize("joint", [False, True])
def test_the_loss(joint: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, at, x = put("vit", warm_up=0.0, curriculum=0.0 if joint else 1.0)
    shake(at)
    policy, method, batch = policy_of(at), at.method, {"pixel_values": x, "labels": Y}
    assert isinstance(method, thrifty.BlockDrop)
    policy.free.fill_(4 if joint else 2)
    drawn = torch.rand(6, 4, generator=torch.Generator().manual_seed(5)) > 0.5
    with torch.no_grad():
        s = policy.scores(x)
    locked = torch.arange(4) < (0 if joint else 2)
    u, calm = drawn | locked, (s > 0.5) | locked
    at.disable(lambda row: True)
    at._swap_base(True)  # edits off, trained weights on
    logits, rival = through(model, x, u), through(model, x, calm)
    at.enable()
    gamma = -5.0 if joint else -1.0

    def worth(path: Tensor, answer: Tensor) -> Tensor:
        return torch.tensor([1 - (float(p.sum()) / 4) ** 2 if a == y else gamma
                             for p, a, y in zip(path, answer.argmax(-1), Y, strict=True)])

    a = worth(u, logits) - worth(calm, rival)
    assert a.any()
    p = 0.8 * s + 0.2 * (1 - s)
    wanted = torch.stack([-a[b] * sum(torch.log(p[b, k] if u[b, k] else 1 - p[b, k]) for k in range(4) if not locked[k])
                          for b in range(6)]).mean()
    wanted = wanted + F.cross_entropy(logits, Y) if joint else wanted - 0.1 * (-p * p.log()).sum() / 6
    draw(monkeypatch, drawn)
    found, items = method.loss(at, Classify(), model, batch)
    torch.testing.assert_close(found.detach(), wanted, atol=1e-5, rtol=1e-5)
    assert items == 6
    found.backward()
    moved = {n.split(":")[0] for n, q in at.named_parameters() if q.grad is not None}
    assert moved == ({"edit", "base"} if joint else {"edit"})


def test_without_an_advantage_there_is_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model, at, x = put("vit", warm_up=0.0, curriculum=1.0, beta=0.0)
    policy_of(at).free.fill_(4)
    draw(monkeypatch, torch.ones(6, 4))  # which is what the policy would do itself
    at.method.loss(at, Classify(), model, {"pixel_values": x, "labels": Y})[0].backward()
    assert not any(p.grad.any() for p in policy_of(at).parameters())


# -- how it trains ------------------------------------------------------------------------------------------------------


def test_parts_of_the_training() -> None:
    model, at, x = put("vit", warm_up=0.2, curriculum=0.4)
    method, batch, policy = at.method, {"pixel_values": x, "labels": Y}, policy_of(at)
    assert isinstance(method, thrifty.BlockDrop)
    seen, free = [method.part(at)], [int(policy.free)]
    for step in range(1, 21):
        method.step(at, step, 20)
        seen.append(method.part(at)), free.append(int(policy.free))
    assert seen == ["warm-up"] * 4 + ["curriculum"] * 8 + ["joint"] * 9
    assert free == [0] * 4 + [1, 1, 2, 2, 3, 3, 4, 4] + [4] * 9
    assert method.settled(at)
    method.step(at, 1, 20)
    assert not method.settled(at)
    torch.testing.assert_close(method.loss(at, Classify(), model, batch)[0], Classify().loss(model, batch)[0])
    rates = {id(p): group["lr"] for group in method.groups(at, 1e-3, 0.1) for p in group["params"]}
    assert {n: rates[id(p)] for n, p in at.named_parameters()} == {
        n: pytest.approx(1e-3 if n.startswith(("edit:", "base:classifier")) else 1e-4) for n, _ in at.named_parameters()}


def test_it_learns_to_leave_out_a_block_that_does_nothing() -> None:
    torch.manual_seed(0)
    model = tiny("vit", num_labels=3, num_hidden_layers=3)
    x = X[..., :16, :16]
    with torch.no_grad():
        for p in (*model.vit.layers[2].mlp.fc2.parameters(), *model.vit.layers[2].attention.o_proj.parameters()):
            p.zero_()
    batch = {"pixel_values": x, "labels": model(pixel_values=x).logits.argmax(-1)}
    at = thrifty.attach(model, thrifty.BlockDrop(policy="resnet8", warm_up=0.0, curriculum=1.0, joint=False, beta=0.0),
                        example={"pixel_values": x})
    optimiser = torch.optim.Adam(at.parameters(), lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        at.method.loss(at, Classify(), model.train(), batch)[0].backward()
        optimiser.step()
    model.eval()
    with torch.no_grad():
        s = policy_of(at).scores(x)
    assert not (s[:, 2] > 0.5).any()  # the only free one
    assert model(pixel_values=x).logits.argmax(-1).tolist() == batch["labels"].tolist()


@pytest.mark.parametrize(("network", "size", "shape"), [("resnet8", 32, (16, 32, 32)), ("resnet10", 224, (64, 28, 28))])
def test_the_policy_network(network: str, size: int, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        net = build(network, 3)
        first = next(i for i, m in enumerate(net) if type(m).__name__ == "Basic")
        x = torch.zeros(2, 3, size, size)
        assert net[:first](x).shape[1:] == shape and net(x).shape == (2, {"resnet8": 64, "resnet10": 512}[network])
    body = [m for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and "short" not in n]
    assert len(body) + 1 == int(network.removeprefix("resnet"))  # and the last linear layer


def test_what_is_claimed_and_starts_as_the_base() -> None:
    model, at, _ = put("resnet", joint=False)
    assert not at.base and count(at) == sum(p.numel() for p in policy_of(at).parameters())
    model, at, x = put("resnet")
    assert set(at.base) == {n for n, _ in model.named_parameters() if "edits" not in n}
    y = model(pixel_values=x).logits
    at.disable()
    assert torch.equal(model(pixel_values=x).logits, y)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, at, x = put("resnet", warm_up=0.0)
    shake(at, 0.05)
    policy_of(at).free.fill_(3)
    at.save(tmp_path / "drop")
    with torch.no_grad():
        y, s = model(pixel_values=x).logits, policy_of(at).scores(x)
    fresh = tiny("resnet", num_labels=3, **DEEP["resnet"])
    again = thrifty.load(fresh, tmp_path / "drop", example={"pixel_values": x})
    with torch.no_grad():
        assert torch.equal(fresh(pixel_values=x).logits, y) and torch.equal(policy_of(again).scores(x), s)
    assert int(policy_of(again).free) == 3


def test_refusals() -> None:
    with pytest.raises(Unfit, match="no pictures"):
        thrifty.attach(tiny("bert"), thrifty.BlockDrop())
    with pytest.raises(Unfit, match="cannot be left out|no block"):
        thrifty.attach(tiny("resnet"), thrifty.BlockDrop(where="conv"), example={"pixel_values": X})
    for settings in ({"policy": "vgg"}, {"alpha": 0.5}, {"beta": -1.0}, {"gamma": 0.0}, {"gamma_joint": 1.0}, {"warm_up": 1.0},
                     {"curriculum": 0.8}):
        with pytest.raises(NoSuchSetting, match=next(iter(settings))):
            thrifty.attach(tiny("vit"), thrifty.BlockDrop(**settings))
    model, at, x = put("vit", warm_up=0.0)
    with pytest.raises(Unfit, match="right classes"):
        at.method.loss(at, Classify(), model, {"pixel_values": x, "labels": torch.rand(6)})


@pytest.mark.timm
def test_timm() -> None:
    timm = pytest.importorskip("timm")
    for model in (timm.create_model("resnet10t", num_classes=3, channels=(8, 8, 16, 16), stem_width=8),
                  timm.create_model("resnet26", num_classes=3, channels=(8, 8, 16, 16), stem_width=8)):
        model.eval()
        at = thrifty.attach(model, thrifty.BlockDrop(policy="resnet8"), example=X)
        k = policy_of(at).blocks
        path = torch.rand(6, k, generator=torch.Generator().manual_seed(1)) > 0.5
        with policy_of(at).following(path):
            with torch.no_grad():
                quick = model(X)
            torch.testing.assert_close(model(X).detach(), quick, atol=1e-5, rtol=1e-5)
        at.detach()

"""NOAH: sub-networks as views of one supernet, their sizes, and the search for one."""
from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from backbones import count, frozen_stay, published, run, shake, tiny
from torch import Tensor

import thrifty
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.methods import make
from thrifty.methods.noah import Nested, NestedAdapter, NestedLoRA, NestedTokens, space_of, use
from thrifty.methods.noah_space import Net, Space, search

IMAGES = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
SPACE = Space((5, 10, 50, 100), (3, 6, 9, 12), 12, 768)


def supernet(**settings: Any) -> tuple[Any, thrifty.Attachment]:
    model = tiny("vit", num_hidden_layers=4).double()
    at = thrifty.attach(model, make("noah", **{"dims": [2, 3, 5], **settings}))
    shake(at)
    return model, at


def numbers(at: thrifty.Attachment, kind: type[Nested], depth: int) -> dict[str, Tensor]:
    """Tensors of one kind in one block; of LoRA those of q, k and v."""
    held = [(row.role[-1], at.edits[row.key]) for row in at.plan if row.depth == depth and isinstance(at.edits[row.key], kind)]
    return {f"{role}.{n}": p.detach() for role, edit in held for n, p in edit.named_parameters()}


def by_hand(model: Any, at: thrifty.Attachment, net: Net, images: Tensor) -> Tensor:
    x, behind = model.vit.embeddings(images), 0
    for i, layer in enumerate(model.vit.layers):
        p, r, a = net.prompt[i], net.lora[i], net.adapter[i]
        if p:
            prompt = next(iter(numbers(at, NestedTokens, i).values()))[:p]
            x, behind = torch.cat([x[:, : x.shape[1] - behind], prompt.expand(len(x), -1, -1)], 1), p
        own, low, u, parts = layer.attention, numbers(at, NestedLoRA, i), layer.layernorm_before(x), []
        for name in ("q", "k", "v"):
            y = getattr(own, f"{name}_proj")(u) + u @ low["q.A"][:r].T @ low[f"{name}.B"][:, :r].T
            parts.append(y.unflatten(-1, (own.num_attention_heads, -1)).transpose(1, 2))
        q, k, v = parts
        o = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + own.o_proj(o.transpose(1, 2).flatten(2))
        y = layer.mlp(layer.layernorm_after(x))
        if a:
            w = {n.partition(".")[2]: t for n, t in numbers(at, NestedAdapter, i).items()}
            h = y @ w["down.weight"][:a].T + w["down.bias"][:a]
            y = y + (h * torch.sigmoid(1.702 * h)) @ w["up.weight"][:, :a].T + w["up.bias"]
        x = x + y
    return model.classifier(model.vit.layernorm(x)[:, 0])


NETS = [Net((5, 5, 5, 5), (5, 5, 5, 5), (5, 5, 5, 5)), Net((2, 5, 3, 0), (3, 0, 0, 0), (5, 2, 0, 0)),
        Net((0, 0, 0, 0), (2, 2, 2, 2), (0, 0, 0, 0)), Net((3, 0, 2, 0), (0, 0, 0, 0), (2, 3, 5, 2))]


@pytest.mark.parametrize("net", NETS)
def test_by_hand(net: Net) -> None:
    model, at = supernet()
    y = run(model, pixel_values=IMAGES)  # the largest, until another is chosen
    use(at, net)
    found = run(model, pixel_values=IMAGES)
    if net == NETS[0]:
        assert torch.equal(found, y)
    at.disable()
    torch.testing.assert_close(found, by_hand(model, at, net, IMAGES))


def test_nothing_of_everything_is_the_base() -> None:
    model, at = supernet()
    use(at, Net((0,) * 4, (0,) * 4, (0,) * 4))
    y = run(model, pixel_values=IMAGES)
    at.disable()
    assert torch.equal(run(model, pixel_values=IMAGES), y)


def test_sub_networks_are_views() -> None:
    model, at = supernet()
    for kind in (NestedTokens, NestedLoRA, NestedAdapter):
        for net in NETS[:2]:
            use(at, net)
            y = run(model, pixel_values=IMAGES)
            name = {NestedTokens: "prompt", NestedLoRA: "q.A", NestedAdapter: "down.weight"}[kind]
            row = next(t for n, t in numbers(at, kind, 0).items() if n.endswith(name))
            row[4, 0] += 1.0  # the last of five rows is in the larger network alone
            assert torch.equal(run(model, pixel_values=IMAGES), y) == ({"prompt": net.prompt, "q.A": net.lora}.get(
                name, net.adapter)[0] < 5)
            row[4, 0] -= 1.0
            row[0, 0] += 1.0
            assert not torch.equal(run(model, pixel_values=IMAGES), y)
            row[0, 0] -= 1.0


@pytest.mark.parametrize("net", [Net((10,) * 12, (5,) * 6 + (0,) * 6, (5,) * 3 + (0,) * 9), Net((0,) * 12, (5,) * 12, (10,) * 12)])
def test_counts(net: Net) -> None:
    at = thrifty.attach(published("vit-b16"), thrifty.NOAH(prompt=list(net.prompt), lora=list(net.lora), adapter=list(net.adapter)))
    wanted = sum(p * 768 + r * 4 * 768 + (2 * 768 * a + a + 768 if a else 0)
                 for p, r, a in zip(net.prompt, net.lora, net.adapter, strict=True))
    assert count(at) == net.count(768) == wanted


def test_the_space_of_the_paper() -> None:
    at = thrifty.attach(published("vit-b16"), thrifty.NOAH())
    assert space_of(at) == SPACE and count(at) == Net(*[(100,) * 12] * 3).count(768)
    random, seen = Random(0), set()
    for _ in range(300):
        for kind in SPACE.draw(random).kinds:
            depth = sum(n > 0 for n in kind)
            assert len(kind) == 12 and set(kind[:depth]) <= {5, 10, 50, 100} and not any(kind[depth:])
            seen |= {depth, *kind}
    assert seen == {0, 3, 6, 9, 12, 5, 10, 50, 100}


def test_mutation_and_crossing() -> None:
    random, net = Random(0), Net((5,) * 12, (10,) * 6 + (0,) * 6, (50,) * 3 + (0,) * 9)
    assert SPACE.mutate(net, random, size=0.0, depth=0.0) == net
    changed = [SPACE.mutate(net, random, depth=0.0).prompt for _ in range(400)]
    share = sum(n != 5 for kind in changed for n in kind) / (400 * 12)
    assert share == pytest.approx(0.2 * 3 / 4, abs=0.02)  # drawn anew, a size may be the old one
    deeper = sum(sum(n > 0 for n in SPACE.mutate(net, random, size=0.0).prompt) != 12 for _ in range(400)) / 400
    assert deeper == pytest.approx(0.4 * 3 / 4, abs=0.07)
    other = Net((100,) * 9 + (0,) * 3, (5,) * 12, (50,) * 12)
    for _ in range(50):
        made = SPACE.cross(net, other, random)
        for kind, a, b in zip(made.kinds, net.kinds, other.kinds, strict=True):
            depth = sum(n > 0 for n in kind)
            assert depth in (sum(n > 0 for n in a), sum(n > 0 for n in b)) and not any(kind[depth:])
            assert all(n in (x, y) for n, x, y in zip(kind[:depth], a, b, strict=False))


def test_the_search_keeps_its_limits() -> None:
    asked: list[Net] = []

    def score(net: Net) -> float:
        asked.append(net)
        return float(sum(net.lora) - sum(net.prompt))

    net, value = search(SPACE, score, 640_000, least=200_000, rounds=6)
    assert all(200_000 <= n.count(768) <= 640_000 for n in asked) and len(set(asked)) == len(asked) <= 50 * 6
    assert value == max(map(score, set(asked))) == score(net) > max(score(n) for n in asked[:50])
    assert search(SPACE, score, 640_000, least=200_000, rounds=6) == (net, value)
    with pytest.raises(NoSuchSetting, match="smallest has 82,959"):
        search(SPACE, score, 10_000)


class Answers:
    """A task whose loss is the sum of the logits."""

    def loss(self, model: Any, batch: None) -> tuple[Tensor, int]:
        return run(model, pixel_values=IMAGES).sum(), 2


def test_each_step_trains_another_sub_network() -> None:
    model, at = supernet()
    method, drawn = at.method, []
    for step in range(20):
        method.step(at, step, 20)
        drawn.append([edit.drawn for edit in at.edits.values() if isinstance(edit, Nested)])
    assert len({tuple(sizes) for sizes in drawn}) > 15
    method.step(at, 7, 20)
    assert [edit.drawn for edit in at.edits.values() if isinstance(edit, Nested)] == drawn[7]
    assert all(edit.used == 5 for edit in at.edits.values() if isinstance(edit, Nested))  # in evaluation, the largest
    _, again = supernet()
    again.memory = dict(at.memory)  # all that a checkpoint holds of the draw
    again.method.loss(again, Answers(), again.model, None)
    assert [edit.drawn for edit in again.edits.values() if isinstance(edit, Nested)] == drawn[7]
    run(model.train(), pixel_values=IMAGES).sum().backward()
    for edit in at.edits.values():
        if isinstance(edit, NestedTokens):
            wanted = [i < edit.drawn for i in range(5)]
            assert edit.drawn == 0 and edit.prompt.grad is None or edit.prompt.grad.any(1).tolist() == wanted


def test_trains_saves_and_leaves(tmp_path: Any) -> None:
    model = tiny("vit")
    base = run(model)
    at = thrifty.attach(model, make("noah", prompt=[3, 2], lora=[2, 0], adapter=[0, 4]))
    assert len(frozen_stay(model, at)) == 2 + 4 + 4
    y = run(model.eval())
    at.save(tmp_path / "found")
    fresh = tiny("vit")
    thrifty.load(fresh, tmp_path / "found")
    assert torch.equal(run(fresh), y)
    with pytest.raises(NoSuchSetting, match="no supernet"):
        space_of(at)
    at.detach()
    assert torch.equal(run(model), base)


def test_refusals() -> None:
    for kind in ("swin", "resnet", "bert"):
        with pytest.raises(Unfit):
            thrifty.attach(tiny(kind), thrifty.NOAH())
    for wrong in ({"dims": []}, {"dims": [0]}, {"depths": [3]}, {"prompt": [1, 1]}, {"prompt": [1], "lora": [1], "adapter": [1]},
                  {"dropout": 1.0}):
        with pytest.raises(NoSuchSetting):
            thrifty.attach(tiny("vit"), make("noah", **wrong))
    _, at = supernet()
    for net in (Net((1,) * 3, (1,) * 3, (1,) * 3), Net((6,) * 4, (0,) * 4, (0,) * 4)):
        with pytest.raises(NoSuchSetting, match="no sub-network"):
            use(at, net)

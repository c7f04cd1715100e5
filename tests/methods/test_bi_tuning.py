"""Bi-Tuning: both contrasts sample by sample, the queues and the copy, the views, and that none of it stays."""
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import count, tiny
from small_classifiers import CLASSES, attach, batch, network, resnet50, steps, task
from torch import Tensor

import thrifty
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.methods import find
from thrifty.methods.bi_tuning import KEY, PLACES, QUEUE_H, QUEUE_Z
from thrifty.methods.guidance.contrast import contrast, enqueue
from thrifty.methods.guidance.views import crop, second_view


class Two(type(task(network()))):  # type: ignore[misc]
    """A task whose batches hold a second view."""

    def view(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"pixel_values": given["pixel_values"].flip(-1)}


def test_identical_embeddings() -> None:
    C, K = 4, 7
    for value in (0.0, 1.0):
        found = contrast(torch.full((5,), value), torch.full((5, C, K), value), torch.tensor([0, 1, 2, 3, 0]), 0.07)
        assert float(found) == pytest.approx(math.log(1 + C * K) - math.log(K + 1), abs=1e-5)


def test_the_contrast_sample_by_sample() -> None:
    own, queued, labels = torch.randn(4), torch.randn(4, 3, 5), torch.tensor([2, 0, 1, 2])
    losses = []
    for i, c in enumerate(labels.tolist()):
        others = [queued[i, other] for other in range(3) if other != c]
        p = (torch.cat([own[i : i + 1], queued[i, c], *others]) / 0.5).softmax(0)
        even = torch.full((6,), 1 / 6)
        losses.append((even * (even / p[:6]).log()).sum())
    torch.testing.assert_close(contrast(own, queued, labels, 0.5), torch.stack(losses).mean())


def test_each_class_has_a_queue_and_a_place_in_it() -> None:
    queue, keys = torch.zeros(2, 3, 1), torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]])
    places = enqueue(queue, torch.tensor([2, 0]), keys, torch.tensor([0, 0, 1, 0, 0]))
    assert queue[..., 0].tolist() == [[2.0, 4.0, 5.0], [3.0, 0.0, 0.0]] and places.tolist() == [0, 1]


def test_the_loss_is_recomputed_sample_by_sample() -> None:
    model, mine = network(), batch()
    method = thrifty.BiTuning(keys=3, width=4, trade_off=0.5, view="same", head_factor=1.0)
    at = attach(model, method)
    its = Two(task(model).backbone, ["c0", "c1", "c2"])
    model.eval()
    method.loss(at, its, model, mine)  # begins the copy and the queues
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)  # the network moves on, the copy stays
    held = {name: t.clone() for name, t in at.memory.items()}
    loss, rows = method.loss(at, its, model, mine)
    phi: Any = next(iter(at.edits.values())).phi  # type: ignore[union-attr]
    head, labels = model.classifier[1], mine["labels"]
    f = model.resnet(mine["pixel_values"]).pooler_output.flatten(1)
    copy = network()
    copy.load_state_dict({n.removeprefix(KEY): t for n, t in held.items() if n.startswith(KEY + "resnet")}, strict=False)
    f_key = copy.resnet(mine["pixel_values"].flip(-1)).pooler_output.flatten(1)
    names = [n for n in held if "phi" in n]
    z_key = F.normalize(F.linear(f_key, *(held[n] for n in sorted(names, reverse=True))), dim=1)
    h, h_key = (F.normalize(torch.cat([x, torch.ones(6, 1)], 1), dim=1) for x in (f, f_key))
    z, w = F.normalize(phi(f), dim=1), F.normalize(torch.cat([head.weight, head.bias[:, None]], 1), dim=1)
    queue_h, places = held[QUEUE_H].clone(), held[PLACES].clone()
    for i, c in enumerate(labels.tolist()):
        queue_h[c, places[c]] = h_key[i]
        places[c] = (places[c] + 1) % 3
    wanted = float(task(model).loss(model, mine)[0])
    for query, own, queue in ((z, z_key, held[QUEUE_Z]), (w[labels], h, queue_h)):
        for i, c in enumerate(labels.tolist()):
            others = [queue[other] @ query[i] for other in range(CLASSES) if other != c]
            p = (torch.cat([(query[i] @ own[i])[None], queue[c] @ query[i], *others]) / 0.07).log_softmax(0)
            wanted += 0.5 / 6 * float((1 / 4 * (math.log(1 / 4) - p[:4])).sum())
    assert rows == 6 and float(loss) == pytest.approx(wanted, rel=1e-4)
    torch.testing.assert_close(at.memory[QUEUE_H], queue_h)
    assert torch.equal(at.memory[PLACES], places)


def test_prototypes_get_no_gradient_and_features_do() -> None:
    model, mine = network(), batch()
    method = thrifty.BiTuning(keys=3, width=4, view="same")
    at = attach(model, method)
    loss, _ = method.loss(at, task(model), model, mine)
    at.model.zero_grad()
    plain, _ = task(model).loss(model, mine)
    (loss - plain).backward()
    head = model.classifier[1]
    assert float(head.weight.grad.abs().max()) < 1e-6 and float(head.bias.grad.abs().max()) < 1e-6
    assert float(model.resnet.embedder.embedder.convolution.weight.grad.abs().max()) > 1e-3
    assert all(p.grad is not None and p.grad.any() for n, p in at.named_parameters() if n.startswith("edit:"))


@pytest.mark.parametrize("momentum", [1.0, 0.9, 0.0])
def test_the_copy_follows(momentum: float) -> None:
    model = network()
    method = thrifty.BiTuning(keys=2, width=4, momentum=momentum)
    at = attach(model, method)
    method.loss(at, task(model), model, batch())
    name = "resnet.embedder.embedder.convolution.weight"
    copy = model.get_parameter(name).detach().clone()
    optimiser = torch.optim.SGD(at.parameters(), lr=0.1)
    for i in range(3):
        optimiser.zero_grad()
        method.loss(at, task(model), model, batch(seed=i))[0].backward()
        optimiser.step()
        method.step(at, i + 1, 3)
        copy = momentum * copy + (1 - momentum) * model.get_parameter(name).detach()
        torch.testing.assert_close(at.memory[KEY + name], copy)


def test_asking_the_copy_moves_no_statistics() -> None:
    model, other = network().train(), network().train()
    method = thrifty.BiTuning(keys=2, width=4)
    at = attach(model, method)
    method.loss(at, task(model), model, batch())
    other(batch()["pixel_values"])
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), other.buffers(), strict=True))


def test_random_keys_of_length_one_and_nothing_left_of_them() -> None:
    model, method = network(), thrifty.BiTuning(keys=5, width=4)
    at = attach(model, method)
    steps(at, method, task(model), 1)
    assert at.memory[QUEUE_H].shape == (CLASSES, 5, 17) and at.memory[QUEUE_Z].shape == (CLASSES, 5, 4)
    for name in (QUEUE_H, QUEUE_Z):
        torch.testing.assert_close(at.memory[name].norm(dim=-1).double(), torch.ones(CLASSES, 5, dtype=torch.float64))
    assert at.memory[PLACES].tolist() == [2, 2, 2]
    groups = method.groups(at, 1e-3, 0.0)
    fast = {id(p) for group in groups if group["lr"] == 1e-2 for p in group["params"]}
    new = {id(p) for n, p in at.named_parameters() if n.startswith(("edit:", "base:classifier"))}
    assert fast == new
    method.finish(at)
    assert not at.plan and not at.memory


def test_views() -> None:
    its, mine = task(network()), batch()
    held = {**mine, "view:pixel_values": mine["pixel_values"] + 1}
    assert set(its.inputs(its.backbone.model, held)) == {"pixel_values"}
    assert torch.equal(second_view(its, None, held, "crop")["pixel_values"], mine["pixel_values"] + 1)
    assert torch.equal(second_view(its, None, mine, "same")["pixel_values"], mine["pixel_values"])
    torch.manual_seed(0)
    seen = second_view(its, None, mine, "auto")["pixel_values"]
    assert seen.shape == mine["pixel_values"].shape and not torch.allclose(seen, mine["pixel_values"])


def test_a_crop_is_a_part_of_the_picture_and_sometimes_mirrored() -> None:
    side = 64
    ramp = torch.linspace(0, 1, side).expand(200, 1, side, side)
    torch.manual_seed(0)
    seen = crop(torch.cat([ramp, ramp.transpose(2, 3)], 1))
    assert float(seen.min()) >= 0 and float(seen.max()) <= 1
    width, height = seen[:, 0, 0, -1] - seen[:, 0, 0, 0], seen[:, 1, -1, 0] - seen[:, 1, 0, 0]
    assert 60 < int((width < 0).sum()) < 140 and bool((height > 0).all())
    area = (width.abs() * height) * (side / (side - 1)) ** 2
    assert 0.15 < float(area.min()) < 0.3 and float(area.max()) > 0.8 and 0.45 < float(area.mean()) < 0.7


def test_published_count() -> None:
    assert count(thrifty.attach(resnet50(200), thrifty.BiTuning())) == 23_508_032 + 2049 * 200 + 2049 * 128


def test_refusals() -> None:
    with pytest.raises(Unfit, match="one vector per example"):
        thrifty.attach(tiny("bert-tokens"), thrifty.BiTuning())
    model, method = network(), thrifty.BiTuning()
    at = attach(model, method)
    with pytest.raises(Unfit, match="contrasts classes"):
        method.loss(at, task(model), model, {**batch(), "labels": torch.rand(6)})
    with pytest.raises(Unfit, match="view='crop'"):
        second_view(task(model), None, {"input_ids": torch.ones(2, 3)}, "crop")
    for name, value in (("keys", 0), ("momentum", 1.5), ("temperature", 0.0), ("view", "twice"), ("width", 0), ("trade_off", -1.0)):
        with pytest.raises(NoSuchSetting, match=name):
            find("bituning").make(**{name: value}).check()

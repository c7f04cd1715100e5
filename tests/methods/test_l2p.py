"""L2P: published counts, which prompts are chosen and what they learn from, and tasks in a row."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import count, frozen_stay, published, run, shake, tiny
from torch import Tensor

import thrifty
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.methods import make
from thrifty.methods.l2p import L2P, PULL, QUERY, Pool, turn_to

IMAGES = torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


class Weighing:
    """A task whose loss is cross-entropy."""

    def loss(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        logits = model(pixel_values=batch["pixel_values"]).logits
        return F.cross_entropy(logits, batch["labels"]), len(logits)


def put(model: Any, **settings: Any) -> tuple[thrifty.Attachment, L2P, Pool]:
    method = make("l2p", **{"size": 5, "length": 2, "top": 3, **settings})
    at = thrifty.attach(model, method)
    pool = next(e for e in at.edits.values() if isinstance(e, Pool))
    with torch.no_grad():
        pool.keys.normal_(generator=torch.Generator().manual_seed(5))
        pool.prompts.normal_(generator=torch.Generator().manual_seed(6))
    return at, method, pool


def train(model: Any, at: thrifty.Attachment, method: L2P, labels: list[int]) -> Tensor:
    """The loss of a batch in training mode, with its gradients left."""
    model.train().zero_grad()
    loss, items = method.loss(at, Weighing(), model, {"pixel_values": IMAGES, "labels": torch.tensor(labels)})
    assert items == 4
    loss.backward()
    model.eval()
    return loss.detach()


def similarity(pool: Pool, query: Tensor) -> Tensor:
    return torch.stack([torch.stack([(q @ k) / (q.norm() * k.norm()) for k in pool.keys.detach()]) for q in query])


def test_counts_and_start_values() -> None:
    assert count(thrifty.attach(published("vit-b16"), thrifty.L2P())) == 76_800 + 7_680 == 84_480
    at = thrifty.attach(tiny("vit"), make("learning-to-prompt", size=100))
    for p in at.parameters():
        assert 0 <= float(p.min()) < 0.001 and 0.009 < float(p.max()) < 0.01


def test_by_hand() -> None:
    model = tiny("vit").double()
    with torch.no_grad():
        query = model.vit(IMAGES).last_hidden_state[:, 0]
    at, _, pool = put(model)
    own = query - query.mean(0)
    with torch.no_grad():  # each image is most like a key of its own
        pool.keys[:4] = own - (own @ query.mean(0))[:, None] * query.mean(0) / query.mean(0).square().sum()
    y = run(model, pixel_values=IMAGES)
    torch.testing.assert_close(at.context.taps[QUERY], query)
    top = similarity(pool, query).argsort(descending=True)[:, :3]
    assert len({tuple(sorted(row.tolist())) for row in top}) > 1  # images choose differently
    torch.testing.assert_close(at.context.taps[PULL], similarity(pool, query).gather(1, top).sum() / 4)
    at.disable()
    x = model.vit.embeddings(IMAGES)
    x = torch.cat([pool.prompts[top].flatten(1, 2), x], 1)  # in front, as the authors have it: no prompt has a position
    for layer in model.vit.layers:
        x = layer(x)
    torch.testing.assert_close(y, model.classifier(model.vit.layernorm(x)[:, :6].mean(1)))


def test_answers_do_not_depend_on_other_images() -> None:
    model = tiny("vit").double()
    put(model)
    together = run(model, pixel_values=IMAGES)
    torch.testing.assert_close(torch.cat([run(model, pixel_values=image[None]) for image in IMAGES]), together)


def test_in_training_a_batch_votes() -> None:
    model = tiny("vit").double()
    _, _, pool = put(model, size=4, top=2)
    votes = torch.tensor([[.9, .8, .1, .0], [.9, .1, .0, .8], [.0, .1, .8, .9]])  # 0 and 3 twice, 1 and 2 once
    assert pool.choose(votes).sort().values.tolist() == [[0, 1], [0, 3], [2, 3]]
    pool.train()
    assert pool.choose(votes).tolist() == [[0, 3]] * 3
    assert pool.choose(votes[:2]).tolist() == [[0, 1]] * 2  # of 1 and 3, once each, the lower number
    assert pool.choose(votes[2:]).sort().values.tolist() == pool.eval().choose(votes[2:]).sort().values.tolist()
    assert put(tiny("vit"), batchwise=False)[2].train().choose(torch.rand(3, 5)).shape == (3, 3)


def test_what_learns_from_what() -> None:
    model = tiny("vit").double()
    with torch.no_grad():
        query = model.vit(IMAGES).last_hidden_state[:, 0]
    at, method, pool = put(model, top=2, pull=0.7)
    loss = train(model, at, method, [0, 1, 0, 1])
    votes = similarity(pool, query).argsort(descending=True)[:, :2].flatten().bincount(minlength=5)
    chosen = votes.argsort(descending=True, stable=True)[:2]
    rest = [j for j in range(5) if j not in chosen.tolist()]
    assert pool.prompts.grad[chosen].flatten(1).any(1).all() and pool.keys.grad[chosen].any(1).all()
    assert not pool.prompts.grad[rest].any() and not pool.keys.grad[rest].any()
    keys, first = pool.keys.detach().clone().requires_grad_(), pool.keys.grad.clone()
    pulled = F.cosine_similarity(query[:, None], keys[chosen][None], dim=-1).sum() / 4
    (-0.7 * pulled).backward()
    torch.testing.assert_close(first, keys.grad)  # no other part of the loss reaches the keys
    train(model, at, method, [1, 1, 1, 0])
    torch.testing.assert_close(pool.keys.grad, first)  # whatever the labels
    method.pull = 0.0
    torch.testing.assert_close(loss, train(model, at, method, [0, 1, 0, 1]) - 0.7 * pulled.detach())
    with torch.no_grad():
        pool.keys -= 0.1 * first
    after = F.cosine_similarity(query[:, None], pool.keys[chosen][None], dim=-1).sum() / 4
    assert after > pulled


def test_all_chosen_is_one_long_prompt() -> None:
    model = tiny("vit").double()
    _, _, pool = put(model, size=3, top=3)
    y = run(model, pixel_values=IMAGES)
    with torch.no_grad():
        pool.keys.normal_()
    torch.testing.assert_close(run(model, pixel_values=IMAGES), y)
    thrifty.attachments(model)["default"].detach()
    x = model.vit.embeddings(IMAGES)
    x = torch.cat([x[:, :1], pool.prompts.flatten(0, 1).expand(4, -1, -1), x[:, 1:]], 1)
    for layer in model.vit.layers:
        x = layer(x)
    torch.testing.assert_close(y, model.classifier(model.vit.layernorm(x)[:, 1:7].mean(1)))


def test_training_is_about_the_classes_of_a_task() -> None:
    model = tiny("vit", num_labels=4).double()
    at, method, _ = put(model, pull=0.0)
    y = run(model, pixel_values=IMAGES)
    turn_to(at, [1, 3])
    assert torch.equal(run(model, pixel_values=IMAGES), y)  # nobody says at test which task it is
    loss = train(model, at, method, [1, 3, 3, 1])
    model.train()
    logits = model(pixel_values=IMAGES).logits.detach()
    assert logits[:, [0, 2]].isneginf().all()
    torch.testing.assert_close(loss, F.cross_entropy(logits[:, [1, 3]], torch.tensor([0, 1, 1, 0])))
    turn_to(at, [0])
    assert not model(pixel_values=IMAGES).logits[:, 0].isneginf().any()
    for wrong in ([4], [-1], []):
        with pytest.raises(NoSuchSetting, match="0 to 3"):
            turn_to(at, wrong)
    with pytest.raises(NoSuchSetting, match="no head"):
        turn_to(thrifty.attach(tiny("vit").vit, thrifty.L2P()), [0])


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_trains_saves_and_leaves(kind: str, tmp_path: Any) -> None:
    model = tiny(kind, hidden_dropout_prob=0.5)
    base = run(model)
    at, _, _ = put(model)
    assert len(frozen_stay(model, at, steps=2)) == 1  # the keys move by the method's own loss alone
    shake(at)
    y = run(model.eval())
    assert torch.equal(run(model), y)
    at.save(tmp_path / "pool")
    fresh = tiny(kind)
    thrifty.load(fresh, tmp_path / "pool")
    assert torch.equal(run(fresh), y)
    at.detach()
    assert torch.equal(run(model), base)


def test_the_trunk_alone_answers_too() -> None:
    model = tiny("vit")
    put(model)
    y = run(model)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.classifier(model.vit(images).last_hidden_state[:, 0]), y)


def test_refusals() -> None:
    for kind, why in (("swin", "stages"), ("resnet", "patches"), ("beit", "bias")):
        with pytest.raises(Unfit, match=why):
            thrifty.attach(tiny(kind), thrifty.L2P())
    for setting, value in (("size", 0), ("length", 0), ("top", 11), ("top", 0), ("pull", -1.0)):
        with pytest.raises(NoSuchSetting, match=setting):
            thrifty.attach(tiny("vit"), make("l2p", **{setting: value}))

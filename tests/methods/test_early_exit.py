"""Early exits: who leaves where, what is computed then, what trains, and the counts of a ResNet-50."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from backbones import count, shake, tiny
from torch import Tensor

import thrifty
from thrifty.core.errors import DeadEdit, NoSuchSetting, Unfit
from thrifty.core.hooks import main
from thrifty.methods.depth import discrepancy, exit_budget
from thrifty.methods.depth.exit_measuring import confidences, exit_flops, set_thresholds, taken, thresholds
from thrifty.methods.depth.exits import exits_of, listening
from thrifty.methods.depth.flops import flops

DEEP: dict[str, dict[str, Any]] = {"vit": {"num_hidden_layers": 4}, "dinov2": {"num_hidden_layers": 4},
                                   "resnet": {"hidden_sizes": [8, 16, 16], "depths": [1, 2, 1]}}
X = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(3))
INF = math.inf


class Classify:
    """Cross-entropy, as a task for pictures computes it."""

    def inputs(self, model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"pixel_values": batch["pixel_values"]}

    def loss(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        return F.cross_entropy(main(model(**self.inputs(model, batch))), batch["labels"]), len(batch["labels"])


def pictures(model: Any) -> Tensor:
    return X[..., : getattr(model.config, "image_size", 32), : getattr(model.config, "image_size", 32)]


def put(kind: str, **settings: Any) -> tuple[Any, thrifty.Attachment, Tensor]:
    model = tiny(kind, num_labels=3, **DEEP[kind])
    x = pictures(model)
    at = thrifty.attach(model, thrifty.EarlyExit(**settings), example={"pixel_values": x})
    shake(at, 0.05)
    return model, at, x


def every(at: thrifty.Attachment, x: Tensor) -> Tensor:
    """The logits of every exit [K, B, C], by the states of the model and not by the edits."""
    model: Any = at.model
    exits, kept = exits_of(at), []
    hooks = [e.site.module.register_forward_hook(lambda m, a, out: kept.append(out)) for e in exits]
    with torch.no_grad(), listening(at):
        end = model(pixel_values=x).logits
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        pooled = [h.mean((2, 3)) if h.dim() == 4 else h[:, 0] for h in kept]
        return torch.stack([*(f @ e.head.weight.T + e.head.bias for f, e in zip(pooled, exits, strict=True)), end])


def sure(logits: Tensor, measure: str) -> Tensor:
    logs = logits.log_softmax(-1)
    return logs.exp().max(-1).values if measure == "probability" else (logs.exp() * logs).sum(-1)


def between(c: Tensor) -> list[float]:
    """Thresholds by which the two surest leave at each exit, and perhaps others."""
    return [float(row.sort(descending=True).values[1:3].mean()) for row in c[:-1]]


# -- where pictures leave -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "dinov2", "resnet"])
@pytest.mark.parametrize("measure", ["probability", "entropy"])
def test_each_picture_gets_the_answer_of_the_first_exit_that_is_sure(kind: str, measure: str) -> None:
    model, at, x = put(kind, measure=measure)
    logits = every(at, x)
    c = sure(logits, measure)
    t = between(c)
    set_thresholds(at, t)
    left = exit_budget.leave(c.tolist(), [*t, -INF])
    assert len(set(left)) > 1
    wanted = torch.stack([logits[k, i] for i, k in enumerate(left)])
    with torch.no_grad():
        found = model(pixel_values=x).logits
    torch.testing.assert_close(found, wanted)
    assert taken(at).tolist() == left
    torch.testing.assert_close(model(pixel_values=x).logits, wanted)  # with gradients nobody leaves, and answers are the same
    assert taken(at).tolist() == left
    for i in range(len(x)):  # whoever else is in the batch
        with torch.no_grad():
            torch.testing.assert_close(model(pixel_values=x[i : i + 1]).logits[0], wanted[i])
        assert taken(at).tolist() == [left[i]]


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_all_leave_at_the_first_exit_or_none_at_any(kind: str) -> None:
    model, at, x = put(kind, trunk="frozen")
    logits = every(at, x)
    with torch.no_grad():
        set_thresholds(at, [-INF] * len(thresholds(at)))
        torch.testing.assert_close(model(pixel_values=x).logits, logits[0])
        assert not taken(at).any()
        set_thresholds(at, [INF] * len(thresholds(at)))
        y = model(pixel_values=x).logits
        assert set(taken(at).tolist()) == {len(logits) - 1}
    at.disable()
    assert torch.equal(y, model(pixel_values=x).logits)


def test_what_is_skipped_is_not_computed() -> None:
    for kind in ("vit", "resnet"):
        model, at, x = put(kind)
        ran: list[str] = []
        inner = [(name, m) for name, m in model.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))
                 and "edits" not in name and "classifier" not in name]  # which is called, but answered for
        for name, module in inner:
            module.register_forward_hook(lambda m, a, out, name=name, ran=ran: ran.append(f"{name} {len(out)}"))
        c = sure(every(at, x), "probability")
        set_thresholds(at, [float(c[0].min()), *[INF] * (len(c) - 2)])
        ran.clear()
        with torch.no_grad():
            model(pixel_values=x)
        first = exits_of(at)[0].site.path
        last = max(i for i, (name, _) in enumerate(inner) if name.startswith(first + "."))
        assert [line.split()[0] for line in ran] == [name for name, _ in inner[: last + 1]]  # and none behind
        set_thresholds(at, [float(c[0].sort().values[1]), *[INF] * (len(c) - 2)])
        ran.clear()
        with torch.no_grad():
            model(pixel_values=x)
        assert {line.split()[1] for line in ran} == {"5", "1"} and ran[-1].endswith(" 1")  # one of five is left


# -- how much that costs ------------------------------------------------------------------------------------------------


def test_operations_are_counted_up_to_each_exit() -> None:
    model, at, x = put("vit", after=[1, 2])
    counted = exit_flops(at, {"pixel_values": x})
    n, d, m, patches, classes = 5, 16, 32, 4, 3
    patch = 2 * patches * (3 * 8 * 8) * d
    block = 2 * n * d * d * 4 + 2 * 2 * n * n * d + 2 * 2 * n * d * m
    head = 2 * d * classes
    assert counted == [patch + block + head, patch + 2 * block + 2 * head, patch + 4 * block + 3 * head]
    at.disable()
    assert flops(model, {"pixel_values": x[:1]}) == patch + 4 * block + head
    assert flops(model, {"pixel_values": x}) == 5 * (patch + 4 * block + head)


def test_calibrated_for_a_budget() -> None:
    model, at, x = put("vit", budget=0.5)
    batches = [{"pixel_values": x[:3], "labels": torch.zeros(3)}, {"pixel_values": x[3:], "labels": torch.zeros(2)}]
    method: Any = at.method
    method.calibrate(at, Classify(), batches)
    c = sure(every(at, x), "probability")
    torch.testing.assert_close(torch.tensor(confidences(at, [{"pixel_values": x}])), c)
    t = exit_budget.thresholds(c.tolist(), 0.5)
    assert thresholds(at) == pytest.approx(t[:-1], abs=1e-6)
    measured = at.about["measured"]
    each = exit_flops(at, {"pixel_values": x})
    assert measured["flops"] == each and each == sorted(each)
    with torch.no_grad():
        model(pixel_values=x)
    left = taken(at).tolist()
    assert measured["left"] == [left.count(k) / 5 for k in range(4)]
    assert measured["expected_flops"] == pytest.approx(sum(each[k] for k in left) / 5)
    assert each[0] <= measured["expected_flops"] <= each[-1]
    method.budget = 0.0
    method.calibrate(at, Classify(), batches)
    assert thresholds(at) == [INF] * 3 and at.about["measured"]["left"] == [0, 0, 0, 1]


# -- training -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_the_loss_is_the_sum_over_exits(kind: str) -> None:
    model, at, x = put(kind)
    y = torch.tensor([0, 1, 2, 1, 0])
    logits, method = every(at, x), at.method
    assert isinstance(method, thrifty.EarlyExit)
    batch = {"pixel_values": x, "labels": y}
    each = [F.cross_entropy(one, y) for one in logits]
    total, items = method.loss(at, Classify(), model, batch)
    assert items == 5
    torch.testing.assert_close(total, torch.stack(each).sum())
    method.gammas = [0.5, *[0.0] * (len(each) - 2), 2.0]
    torch.testing.assert_close(method.loss(at, Classify(), model, batch)[0], 0.5 * each[0] + 2 * each[-1])
    method.gammas = []
    total.backward()
    assert all(p.grad is not None for p in at.parameters())
    model.train()
    torch.testing.assert_close(model(pixel_values=x).logits.shape, logits[-1].shape)
    assert not at.context.taps  # nothing is held until the next batch


def test_what_trains_and_at_which_rate() -> None:
    model, at, _ = put("vit", trunk="frozen")
    assert count(at) == 3 * (16 + 1) * 3 and not at.base
    model, at, _ = put("vit")
    assert set(at.base) == {n for n, _ in model.named_parameters() if "edits" not in n}
    rates = {id(p): group["lr"] for group in at.method.groups(at, 1e-3, 0.1) for p in group["params"]}
    assert {n: rates[id(p)] for n, p in at.named_parameters()} == {
        n: pytest.approx(1e-3 if n.startswith(("edit:", "base:classifier")) else 1e-4) for n, _ in at.named_parameters()}


def test_a_source_and_a_target() -> None:
    model, at, x = put("vit")
    source, target = {"pixel_values": x[:3], "labels": torch.tensor([0, 1, 2])}, {"pixel_values": x[3:]}
    found, items = discrepancy.loss(at, Classify(), model, source, target, trade_off=0.7)
    ys, yt = every(at, x[:3]), every(at, x[3:])
    with torch.no_grad():
        with listening(at) as seen:
            model(pixel_values=x[:3])
        with listening(at) as unseen:
            model(pixel_values=x[3:])
    wanted = 0.0
    for k in range(4):
        k_all = torch.ones(5, 5)
        for s, t in ((seen[k][1], unseen[k][1]), (ys[k].softmax(-1), yt[k].softmax(-1))):
            z = torch.cat([s, t])
            d2 = torch.cdist(z, z) ** 2
            bandwidth = d2.sum() / 20
            k_all = k_all * sum(torch.exp(-d2 / (w * bandwidth)) for w in (.25, .5, 1, 2, 4)) / 5
        apart = k_all[:3, :3].mean() + k_all[3:, 3:].mean() - 2 * k_all[:3, 3:].mean()
        wanted = wanted + F.cross_entropy(ys[k], source["labels"]) + 0.7 * apart
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert items == 3
    same = torch.randn(4, 2)
    assert float(discrepancy.mmd([same], [same])) == pytest.approx(0, abs=1e-6)


# -- places -------------------------------------------------------------------------------------------------------------


def test_default_places_and_counts() -> None:
    with torch.device("meta"):
        model = hf.ResNetForImageClassification(hf.ResNetConfig(num_labels=31))
    at = thrifty.attach(model, thrifty.EarlyExit(trunk="frozen"))
    ends = [f"resnet.encoder.stages.{s}.layers.{b}" for s, b in ((0, 2), (1, 3), (2, 5))]
    assert [e.site.path for e in exits_of(at)] == ends
    assert count(at) == 55_645 == (256 + 512 + 1024) * 31 + 3 * 31
    assert sum(p.numel() for p in model.classifier.parameters()) == 2_049 * 31
    with torch.device("meta"):
        vit = hf.ViTForImageClassification(hf.ViTConfig(num_labels=31))
    at = thrifty.attach(vit, thrifty.EarlyExit(trunk="frozen"))
    assert [e.site.path for e in exits_of(at)] == [f"vit.layers.{i}" for i in (2, 5, 8)]
    assert count(at) == 3 * 769 * 31


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, at, x = put("resnet")
    set_thresholds(at, [0.5, INF])
    with torch.no_grad():
        y = model(pixel_values=x).logits
    left = taken(at).tolist()
    at.save(tmp_path / "exits")
    fresh = tiny("resnet", num_labels=3, **DEEP["resnet"])
    again = thrifty.load(fresh, tmp_path / "exits", example={"pixel_values": x[:1]})
    with torch.no_grad():
        assert torch.equal(fresh(pixel_values=x).logits, y)
    assert taken(again).tolist() == left and thresholds(again) == [0.5, INF]


def test_a_model_that_is_given_labels_runs_to_its_end() -> None:
    model, at, x = put("vit")
    set_thresholds(at, [-INF, INF, INF])
    with torch.no_grad():
        assert model(pixel_values=x, labels=torch.zeros(5, dtype=torch.long)).loss.isfinite()
        at.disable(lambda row: row.edit == "exits-begin")
        with pytest.raises(DeadEdit, match="switch all edits"):
            model(pixel_values=x)


def test_blocks_that_are_computed_again_in_the_backward_pass() -> None:
    found = []
    for again in (False, True):
        model, at, x = put("vit")
        if again:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        torch.manual_seed(0)
        at.method.loss(at, Classify(), model, {"pixel_values": x, "labels": torch.tensor([0, 1, 2, 1, 0])})[0].backward()
        found.append([p.grad for p in at.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_refusals() -> None:
    for kind, why in (("swin", "between its blocks"), ("bert", "no pictures")):
        with pytest.raises(Unfit, match=why):
            thrifty.attach(tiny(kind), thrifty.EarlyExit())
    for settings in ({"after": [2, 1]}, {"after": [2]}, {"measure": "margin"}, {"budget": -1.0}, {"gammas": [1.0]},
                     {"trunk": "half"}):
        with pytest.raises(NoSuchSetting, match=next(iter(settings))):
            thrifty.attach(tiny("vit"), thrifty.EarlyExit(**settings))
    with pytest.raises(Unfit, match="linear layer"):
        thrifty.attach(hf.ViTModel(hf.ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                                                image_size=16, patch_size=8), add_pooling_layer=False), thrifty.EarlyExit())
    _, at, _ = put("vit")
    with pytest.raises(Unfit, match="3 numbers"):
        set_thresholds(at, [0.5])
    with pytest.raises(Unfit, match="no batch"):
        taken(thrifty.attach(tiny("vit"), thrifty.EarlyExit(), check=False))


@pytest.mark.timm
def test_timm() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=3, channels=(8, 8, 16, 16), stem_width=8).eval()
    at = thrifty.attach(model, thrifty.EarlyExit(), example=X)
    assert [e.site.path for e in exits_of(at)] == ["layer1.0", "layer2.0", "layer3.0"]
    shake(at)
    set_thresholds(at, [0.4, 0.4, 0.4])
    with torch.no_grad():
        quick = model(X)
    torch.testing.assert_close(model(X).detach(), quick)
    with pytest.raises(Unfit, match="between"):
        thrifty.attach(timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)), thrifty.EarlyExit())

"""DELTA: Omega by hand, plain and with attention; where it listens; how channels are weighed; what the source is."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import count, shake, tiny
from small_classifiers import attach, batch, batches, network, resnet50, steps, task

import thrifty
from thrifty.core.errors import NoSuchSetting, ThriftyError, Unfit
from thrifty.methods import find, make
from thrifty.methods.delta import WEIGHTS, gap
from thrifty.methods.guidance.channel_attention import silenced, weigh
from thrifty.methods.guidance.source import ask_source

SOURCE = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[2.0, 2.0], [0.0, 0.0]]]])
TARGET = torch.tensor([[[[1.0, 1.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 0.0]]]])
ATTENTION = torch.tensor([0.25, 0.75])


def convolutions(model: Any) -> list[Any]:
    """The last convolution of each stage of the tiny ResNet, whose blocks are two convolutions each."""
    return [stage.layers[-1].layer[-1].convolution for stage in model.resnet.encoder.stages]


def maps(model: Any, pixels: torch.Tensor) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    handles = [conv.register_forward_hook(lambda m, a, y: found.append(y)) for conv in convolutions(model)]
    model(pixels)
    for handle in handles:
        handle.remove()
    return found


def test_the_worked_example() -> None:
    assert float(gap(TARGET, SOURCE, None)) == 2.5
    assert float(gap(TARGET, SOURCE, ATTENTION)) == 0.8125
    tokens = [t.flatten(2).transpose(1, 2) for t in (TARGET, SOURCE)]  # the same map as tokens [B, N, C]
    assert float(gap(*tokens, None)) == 2.5 and float(gap(*tokens, ATTENTION)) == 0.8125
    twice = [torch.cat([t, t]) for t in (TARGET, SOURCE)]
    assert float(gap(*twice, ATTENTION)) == 1.625  # a sum over the batch


def test_attention_is_a_softmax_of_what_was_lost() -> None:
    wanted = torch.tensor([0.244845, 0.197713, 0.220020, 0.337423])
    torch.testing.assert_close(weigh(torch.tensor([0.3, 0.1, 0.2, 0.6])), wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(weigh(torch.full((4,), 0.7)), torch.full((4,), 0.25))


@pytest.mark.parametrize("attention", [False, True])
def test_the_loss_is_recomputed_from_both_networks(attention: bool) -> None:
    model, source, mine = network(), network(), batch()
    method = thrifty.DELTA(alpha=0.2, attention=attention, iterations=1, head_epochs=1)
    at = attach(model, method, batches=batches())
    shake(at, 0.1)
    model.eval()
    loss, rows = method.loss(at, task(model), model, mine)
    wanted = F.cross_entropy(model(mine["pixel_values"]).logits.float(), mine["labels"])
    a = [at.memory[name] for name in at.memory if name.startswith(WEIGHTS)]
    for i, (now, then) in enumerate(zip(maps(model, mine["pixel_values"]), maps(source, mine["pixel_values"]), strict=True)):
        for b in range(6):
            for c in range(now.shape[1]):
                weight = now.shape[1] * a[i][c] / now[0, 0].numel() if attention else 1.0
                wanted = wanted + 0.2 * 0.5 * weight * (now[b, c] - then[b, c]).square().sum()
    assert rows == 6 and float(loss) == pytest.approx(float(wanted), rel=1e-4)
    assert float(method.penalty(at)) == pytest.approx(0.005 * sum(float(p.square().sum()) for p in model.classifier.parameters()))


def test_omega_is_zero_at_the_start_where_statistics_are_the_same() -> None:
    model, method = network(), thrifty.DELTA(alpha=1.0, attention=False)
    at, plain = attach(model, method), task(model)
    mine = batch()
    for training in (False, True):
        model.train(training)
        gone = float(method.loss(at, plain, model, mine)[0])
        model.train(training)
        alone = float(plain.loss(model, mine)[0])
        assert (abs(gone - alone) < 1e-6) != training  # batch statistics in training, running ones in the source


def test_the_source_stays_as_it_was_and_leaves_no_trace() -> None:
    model = network()
    at = attach(model, thrifty.DELTA(attention=False))
    pixels = batch()["pixel_values"]
    wanted = model(pixels).logits
    shake(at, 0.2)
    model.train()
    with torch.no_grad():
        model(pixels)  # which moves running statistics too
    before = {name: t.clone() for name, t in model.state_dict().items()}
    found = ask_source(at, {"pixel_values": pixels}).logits
    torch.testing.assert_close(found, wanted)
    assert not found.requires_grad and all(m.training for m in model.modules())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_attention_is_measured_by_silencing_filters() -> None:
    model, mine = network(), batch(rows=6)
    method = thrifty.DELTA(iterations=1, head_epochs=3)
    head = {n: p.detach().clone() for n, p in model.classifier.named_parameters()}
    fitted: dict[str, torch.Tensor] = {}

    import thrifty.methods.guidance.channel_attention as module

    real = module._fit

    def note(layer: Any, *more: Any) -> None:
        real(layer, *more)
        fitted.update({n: p.detach().clone() for n, p in layer.named_parameters(recurse=False)})

    module._fit = note  # type: ignore[assignment]
    try:
        at = attach(model, method, batches=iter([mine]))
    finally:
        module._fit = real
    assert all(torch.equal(p, head[n]) for n, p in model.classifier.named_parameters())  # the model got its own head back
    twin = network()
    for name, value in fitted.items():
        twin.classifier[1].get_parameter(name).data.copy_(value)

    @torch.no_grad()
    def error() -> torch.Tensor:
        return F.cross_entropy(twin(mine["pixel_values"]).logits.float(), mine["labels"])

    for conv, name in zip(convolutions(twin), at.memory, strict=True):
        increases = []
        for c in range(conv.out_channels):
            whole, kept = error(), conv.weight[c].detach().clone()
            conv.weight.data[c] = 0.0
            increases.append(error() - whole)
            conv.weight.data[c] = kept
        z = torch.stack(increases)
        z = (z - z.mean()) / (z - z.mean()).square().mean().sqrt() / 5
        torch.testing.assert_close(at.memory[name], z.exp() / z.exp().sum(), atol=1e-4, rtol=1e-3)


def test_the_head_that_weighs_is_fitted_to_the_rows() -> None:
    from thrifty.methods.guidance.channel_attention import _fit

    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    features = F.one_hot(labels, 3).float() + 0.1 * torch.randn(60, 3)
    head = torch.nn.Linear(3, 3)
    _fit(head, features, labels, 30, 6)
    assert bool((head(features).argmax(1) == labels).all())


def test_a_silent_channel_gives_out_its_bias() -> None:
    conv = torch.nn.Conv2d(3, 4, 3)
    model = torch.nn.Sequential(conv)
    (place,) = thrifty.sites(model, "conv")
    x, y = torch.randn(2, 3, 5, 5), None
    with silenced(place, 2):
        y = model(x)
    wanted = conv(x).clone()
    wanted[:, 2] = conv.bias[2]
    assert torch.equal(y, wanted) and not torch.equal(model(x), wanted)


def test_places() -> None:
    at = thrifty.attach(resnet50(), thrifty.DELTA(attention=False))
    stages = ((0, 2), (1, 3), (2, 5), (3, 2))
    assert [row.path for row in at.plan] == [f"encoder.stages.{s}.layers.{b}.layer.2.convolution" for s, b in stages]
    assert count(at) == 23_508_032
    at = thrifty.attach(tiny("swin"), thrifty.DELTA(attention=False))
    assert [row.path for row in at.plan] == ["swin.encoder.layers.0.blocks.0", "swin.encoder.layers.1.blocks.0"]
    at = thrifty.attach(tiny("vit", num_hidden_layers=6), thrifty.DELTA(attention=False))
    depths = [row.depth for row in at.plan]
    assert depths == [1, 2, 4, 5] and {row.role for row in at.plan} == {"block"}
    at = thrifty.attach(tiny("vit", num_hidden_layers=6), make("delta-plain", where="block[2:4]"))
    assert [row.depth for row in at.plan] == [2, 3]


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_blocks_of_transformers_are_weighed_too(kind: str) -> None:
    side = 16 if kind == "vit" else 32
    model = tiny(kind, num_labels=3)
    given = [{"pixel_values": b["pixel_values"].float()[..., :side, :side], "labels": b["labels"]} for b in batches()]
    method = thrifty.DELTA(iterations=1, head_epochs=1)
    at = thrifty.attach(model, method, also_train="head", batches=iter(given), example={"pixel_values": given[0]["pixel_values"]})
    assert {len(a) for a in at.memory.values()} == ({16} if kind == "vit" else {16, 8})
    assert all(float(a.sum()) == pytest.approx(1.0) for a in at.memory.values())
    shake(at, 0.1)
    loss, _ = method.loss(at, task(model), model, given[0])
    loss.backward()
    method.finish(at)
    assert bool(loss.isfinite()) and not at.plan


def test_it_trains_and_stays_near() -> None:
    gaps = []
    for alpha in (0.0, 1.0):
        model, method = network("vit"), thrifty.DELTA(alpha=alpha, attention=False)
        at = attach(model, method, side=16)
        steps(at, method, task(model), 8, 1e-3, side=16)
        pixels = batch(side=16)["pixel_values"]
        ask_source(at, {"pixel_values": pixels})
        source = method._hear(at)
        model.eval()(pixels)
        gaps.append(sum(float(gap(now, source[path], None)) for path, now in method._hear(at).items()))
    assert gaps[1] < 0.5 * gaps[0]


def test_refusals() -> None:
    with pytest.raises(ThriftyError, match="attention=False"):
        attach(network(), thrifty.DELTA())
    with pytest.raises(ThriftyError, match="no row of data"):
        attach(network(), thrifty.DELTA(), batches=iter([]))
    with pytest.raises(Unfit, match="reads tokens"):
        thrifty.attach(tiny("bert"), thrifty.DELTA())
    for name in ("alpha", "beta", "iterations", "head_epochs"):
        with pytest.raises(NoSuchSetting, match=name):
            find("delta-plain").make(**{name: -1}).check()

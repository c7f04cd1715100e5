"""Running statistics are part of the frozen base: model.train() does not wake them, and detaching gives their mode back."""
from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import thrifty
from thrifty.testing import tiny
from thrifty.testing.measuring import loss, put, same, stir

CONV = thrifty.LoRA(rank=2, where="conv")


@pytest.mark.parametrize("name", ["convolver", "resnet", "mobilenet_v2"])
def test_statistics_stay_still_in_training_mode(name: str) -> None:
    backbone = tiny.make(name)
    model, at = put(thrifty.LoRA(rank=2, where="conv" if name != "mobilenet_v2" else "head"), backbone)
    stir(at)
    wanted = backbone.output(model)
    before = {n: b.clone() for n, b in model.named_buffers()}
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    loss(backbone, model).backward()
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    same(backbone.output(model), wanted, "a model in training mode whose statistics are held still")


def test_a_norm_that_trained_trains_again_after_detaching() -> None:
    backbone = tiny.make("convolver")
    model = backbone.fresh().train()
    reference = copy.deepcopy(model)
    at = thrifty.attach(model, CONV, example=backbone.example)
    model(backbone.example)
    at.detach()
    assert [m.training for m in model.modules()] == [m.training for m in reference.modules()]
    model(backbone.example), reference(backbone.example)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), reference.buffers(), strict=True))
    assert not torch.equal(model.features[1].running_mean, backbone.model.features[1].running_mean)


def test_the_last_of_two_attachments_gives_the_statistics_back() -> None:
    backbone = tiny.make("convolver")
    model = backbone.fresh()
    one = thrifty.attach(model, CONV, name="one", example=backbone.example)
    two = thrifty.attach(model, thrifty.LoRA(rank=2, where="head"), name="two", example=backbone.example)
    one.detach()
    model.train()(backbone.example)
    assert torch.equal(model.features[1].running_mean, backbone.model.features[1].running_mean)
    two.detach()
    model.train()(backbone.example)
    assert not torch.equal(model.features[1].running_mean, backbone.model.features[1].running_mean)


def test_statistics_made_part_of_the_adapter_move_and_travel() -> None:
    backbone = tiny.make("convolver")
    model, at = put(CONV, backbone)
    names = ["features.1.running_mean", "features.1.running_var", "features.1.num_batches_tracked"]
    at.train_buffers(names)
    model.train()(backbone.example)
    assert not torch.equal(model.features[1].running_mean, backbone.model.features[1].running_mean)
    assert torch.equal(model.features[4].running_mean, backbone.model.features[4].running_mean)
    assert {f"base:{n}" for n in names} <= set(at.state())
    at.detach()
    assert all(torch.equal(b, dict(backbone.model.named_buffers())[n]) for n, b in model.named_buffers())

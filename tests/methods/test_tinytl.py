"""TinyTL: its module, what it trains and counts, and the memory that it saves, in a model of it and in bytes."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from backbones import count, run, shake, tiny
from torch import Tensor, nn

import thrifty
from thrifty.core.errors import CannotMerge, NoSuchSetting, Unfit
from thrifty.methods import make
from thrifty.methods.branches.lite_residual import LiteResidual, divisible, group_norm, main_branches, standardise
from thrifty.methods.memory.activation_memory import measure, predict
from thrifty.methods.memory.kmeans import cluster, quantise
from thrifty.methods.memory.sparing import Frugally, Sparing, pack, unpack
from thrifty.testing.tiny import make as make_tiny


def bottlenecks(**more: Any) -> Any:
    return tiny("resnet", **{"layer_type": "bottleneck", "hidden_sizes": [16, 32], **more})


def mobile(**more: Any) -> Any:
    torch.manual_seed(0)
    config = hf.MobileNetV2Config(**{"depth_multiplier": 0.25, "image_size": 32, "num_labels": 3, **more})
    model = hf.MobileNetV2ForImageClassification(config).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.3)
    return model


def lite(at: thrifty.Attachment) -> list[LiteResidual]:
    return [e for e in at.edits.values() if isinstance(e, LiteResidual)]


def worked_example() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


# -- the lite residual module ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["resnet", "mobile"])
def test_the_start_is_the_backbone(kind: str) -> None:
    make_one = bottlenecks if kind == "resnet" else mobile
    model, base = make_one(), make_one()
    at = thrifty.attach(model, thrifty.TinyTL())
    assert torch.equal(run(model), run(base))
    assert len(lite(at)) == (2 if kind == "resnet" else 16)
    assert all(not e.last.weight.any() and e.last.bias is None for e in lite(at))
    shake(at, 0.1)
    assert not torch.allclose(run(model), run(base))


def test_what_the_module_computes() -> None:
    model = bottlenecks()
    at = thrifty.attach(model, thrifty.TinyTL(kernel=3))
    shake(at)
    edit, block = lite(at)[1], model.resnet.encoder.stages[1].layers[0]
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        handle = block.register_forward_pre_hook(lambda m, a: seen.update(a=a[0]))
        run(model)
        handle.remove()
        a = seen["a"]  # 16 channels, 8 x 8, and the block halves that
        assert a.shape[1:] == (16, 8, 8)
        h = F.avg_pool2d(a, 2)
        W = edit.conv.weight
        flat = W.view(len(W), -1)
        W_hat = ((flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-5)).view_as(W)
        h = F.conv2d(h, W_hat, stride=2, padding=1, groups=2)
        h = F.relu(F.group_norm(h, 2, edit.norm.weight, edit.norm.bias))
        flat = edit.point.weight.view(32, -1)
        h = F.conv2d(h, ((flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-5)).view(32, 16, 1, 1))
        h = F.group_norm(h, 4, edit.last.weight)
        main = block.layer[:2](a)
        conv = block.layer[2]
        main = conv.normalization.forward(conv.convolution(main))
        wanted = F.relu(main + F.interpolate(h, size=(4, 4), mode="bilinear") + block.shortcut(a))
        torch.testing.assert_close(block(a), wanted, rtol=1e-4, atol=1e-5)


def test_kernels_follow_the_resolution() -> None:
    method = thrifty.TinyTL()
    from thrifty.methods.branches.lite_residual import MainBranch

    def sizes(height: int) -> tuple[int, int]:
        found = method.sizes(MainBranch(None, None, 8, height, 1))  # type: ignore[arg-type]
        return found["kernel"], found["pool"]

    assert [sizes(h) for h in (112, 14, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1)] == [
        (5, 2), (5, 2), (5, 2), (5, 2), (3, 2), (3, 2), (3, 2), (3, 2), (1, 2), (1, 2), (1, 0), (1, 0), (1, 0)]


@pytest.mark.parametrize("side", [17, 22, 31, 33, 45])
def test_odd_resolutions_keep_the_shape(side: int) -> None:
    model = mobile(image_size=side)
    at = thrifty.attach(model, thrifty.TinyTL(), example={"pixel_values": torch.zeros(1, 3, side, side)})
    shake(at, 0.1)
    assert run(model, pixel_values=torch.randn(2, 3, side, side)).shape == (2, 3)
    for branch in main_branches(at):
        assert branch.stride in (1, 2)


def test_group_norms_and_standardised_weights() -> None:
    assert [group_norm(w).num_groups for w in (8, 24, 320, 12)] == [1, 3, 40, 3]
    assert [divisible(w) for w in (16, 24, 3, 12, 11, 17.6)] == [16, 24, 8, 16, 16, 16]
    W = torch.randn(5, 4, 3, 3)
    hat = standardise(W, 1e-5).flatten(1)
    torch.testing.assert_close(hat.mean(1), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(hat.std(1), torch.ones(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(standardise(3 * W + 7, 1e-5).flatten(1), hat, atol=1e-4, rtol=1e-3)


def test_counts() -> None:
    with torch.device("meta"):
        model = hf.MobileNetV2ForImageClassification(hf.MobileNetV2Config())
    at = thrifty.attach(model, thrifty.TinyTL(mode="lite_residual"))
    wanted = 0
    widths = [(16, 24), (24, 24), (24, 32), *[(32, 32)] * 2, (32, 64), *[(64, 64)] * 3, (64, 96), *[(96, 96)] * 2, (96, 160),
              *[(160, 160)] * 2, (160, 320)]
    heights = [112, 56, 56, 28, 28, 28, 14, 14, 14, 14, 14, 14, 14, 7, 7, 7]
    for (enters, leaves), height in zip(widths, heights, strict=True):
        k = 5 if height // 2 >= 5 else 3
        wanted += k * k * (enters // 2) * enters + 2 * enters + enters * leaves + 2 * leaves - leaves
    assert count(at) == wanted


def test_published_counts_of_biases() -> None:
    with torch.device("meta"):
        vit = hf.ViTModel(hf.ViTConfig(), add_pooling_layer=False)
        resnet = hf.ResNetModel(hf.ResNetConfig())
    assert count(thrifty.attach(vit, make("tinytl-bias"))) == 102_912
    assert count(thrifty.attach(resnet, make("tinytl-bias"))) == 26_560


def test_what_trains() -> None:
    model = mobile()
    at = thrifty.attach(model, thrifty.TinyTL(), also_train="head")
    trained = {n for n, p in model.named_parameters() if p.requires_grad and "edits" not in n}
    assert trained == {n for n, _ in model.named_parameters() if n.endswith("bias") and "edits" not in n} | {"classifier.weight"}
    for edit in lite(at):
        names = {n for n, p in edit.named_parameters() if p.requires_grad}
        assert names == {"conv.weight", "norm.weight", "norm.bias", "point.weight", "last.weight"}
    only = thrifty.attach(mobile(), make("tinytl-lite"))
    assert not only.base and lite(only)


# -- what is kept for the backward pass -----------------------------------------------------------------------------------------


def test_bits() -> None:
    for shape in ((3, 5), (8,), (2, 4, 4), (1,)):
        mask = torch.rand(shape) > 0.5
        packed = pack(mask)
        assert packed.dtype == torch.uint8 and packed.numel() == -(-mask.numel() // 8)
        assert torch.equal(unpack(packed, mask.shape), mask.to(torch.uint8))


def test_stand_ins_give_the_same_numbers_and_gradients() -> None:
    torch.manual_seed(0)
    convs = [nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False),
             nn.Conv2d(4, 2, 3, dilation=2)]
    norm = nn.BatchNorm2d(4).eval()
    nn.init.normal_(norm.weight)
    norm.running_var.uniform_(0.5, 2)
    for layer in (*convs, norm, nn.ReLU(), nn.ReLU6(), nn.ReLU(inplace=True), nn.Hardtanh(-0.5, 0.7),
                  nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2)):
        if hasattr(layer, "weight"):
            layer.weight.requires_grad_(False)
        x, found = 4 * torch.randn(3, 4, 9, 9), []
        for mode in (False, True):
            own = x.clone().requires_grad_()
            given = own * 1.0  # in-place layers must not be given a leaf
            y = layer(given)
            if mode:
                given = own * 1.0
                with Frugally():
                    y = layer(given)
            layer.zero_grad()
            (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
            bias = getattr(layer, "bias", None)
            found.append([y.detach(), own.grad, *([] if bias is None else [bias.grad.clone()])])
        assert torch.equal(found[0][0], found[1][0])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_worked_example_in_the_model_and_in_bytes() -> None:
    torch.manual_seed(0)
    model, x = worked_example(), torch.randn(1, 3, 32, 32)
    assert predict(model, x).activations == 4 * 3072 + 8192 // 8 + 4 * 8192 + 8192 // 8 + 4 * 8 == 47_136
    model[0].weight.requires_grad_(False)
    model[2].weight.requires_grad_(False)
    bias = predict(model, x)
    assert bias.activations == 2 * 1024 + 32 == 2_080
    assert bias.stored == {"0": 0, "1": 1024, "2": 0, "3": 1024, "6": 32}

    def forward() -> Tensor:
        with Frugally():
            return model(x)

    assert measure(model, forward) == 2_080, "torch keeps what the model of it says"
    assert measure(model, lambda: model(x)) == 4 * 3072 + 2 * 4 * 8192 + 32, "and by itself all inputs"


def test_freezing_a_weight_saves_its_input() -> None:
    model, x = worked_example(), torch.randn(1, 3, 32, 32)
    whole = predict(model, x).activations
    for i, numel in ((0, 3072), (2, 8192), (6, 8)):
        model[i].weight.requires_grad_(False)
        assert whole - predict(model, x).activations == 4 * numel
        model[i].weight.requires_grad_(True)


def test_the_peak_and_the_total_by_hand() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(8, 8, 3, padding=1, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)

    skip = Skip()
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), skip)
    found = predict(model, torch.randn(1, 3, 4, 4), residual=[skip])
    first, act = 4 * (48 + 128), 4 * 48 + 4 * 128
    inner = 4 * (128 + 128 // 2) + 4 * 128 + 4 * 48 + 128 // 8
    assert found.peak == max(first, act, inner)
    weights = 3 * 8 * 9 + 8 + 8 * 4 * 9 + 8
    assert (found.trainable, found.frozen) == (weights, 0) and found.total(8) == 8 * found.peak + 4 * weights
    model[0].weight.requires_grad_(False)
    assert predict(model, torch.randn(1, 3, 4, 4)).total(1, bits=8) == 4 * (weights - 216) + 216 + predict(
        model, torch.randn(1, 3, 4, 4)).peak


@pytest.mark.parametrize("kind", ["resnet", "mobile"])
def test_gradients_of_biases_do_not_depend_on_what_else_trains_or_is_kept(kind: str) -> None:
    make_one = bottlenecks if kind == "resnet" else mobile
    base = make_one()
    run(base).square().sum().backward()
    wanted = {n: p.grad for n, p in base.named_parameters() if n.endswith("bias")}
    for sparing in (True, False):
        model = make_one()
        thrifty.attach(model, thrifty.TinyTL(mode="bias", sparing=sparing))
        run(model).square().sum().backward()
        for name, grad in wanted.items():
            torch.testing.assert_close(model.get_parameter(name).grad, grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["resnet", "mobile"])
def test_bytes_that_training_keeps(kind: str) -> None:
    make_one = bottlenecks if kind == "resnet" else mobile
    pixels = {"pixel_values": torch.randn(2, 3, 64, 64)}

    def kept(**settings: Any) -> tuple[int, Any]:
        model = make_one()
        if settings:
            thrifty.attach(model, thrifty.TinyTL(**settings), example=pixels, also_train="head")
        return measure(model, lambda: model(**pixels).logits.sum()), model

    full, base = kept()
    stock, _ = kept(mode="bias", sparing=False)
    spared, model = kept(mode="bias")
    both = kept(mode="lite_residual+bias")[0]
    assert stock > 0.7 * full, "torch keeps almost all, though only biases train"
    assert spared < 0.15 * full and spared < both < 0.6 * full
    relus = predict(model, {"pixel_values": pixels["pixel_values"][:1]})
    assert relus.activations < predict(base, {"pixel_values": pixels["pixel_values"][:1]}).activations / 10
    pooling = 2 * 4 * 8 * 16 * 16 if kind == "resnet" else 0  # which the model of it leaves out
    assert spared == 2 * relus.activations + pooling


def test_bytes_of_a_transformer_block() -> None:
    """16 N d + H N² numbers per block if all weights train; 9 N d + H N² if gradients only pass through."""
    config = hf.ViTConfig(hidden_size=32, num_attention_heads=4, intermediate_size=128, image_size=32, patch_size=8)
    config._attn_implementation = "eager"
    N, d, H = 17, 32, 4
    found = {}
    for depth in (2, 4):
        config.num_hidden_layers = depth
        torch.manual_seed(0)
        model = hf.ViTModel(config, add_pooling_layer=False).eval()
        x = torch.randn(1, 3, 32, 32)
        found["all", depth] = measure(model, lambda model=model, x=x: model(x).last_hidden_state)
        thrifty.attach(model, make("tinytl-bias", sparing=False))
        found["bias", depth] = measure(model, lambda model=model, x=x: model(x).last_hidden_state)
    statistics = 2 * 2 * N  # mean and deviation of two normalisations
    one = {kind: (found[kind, 4] - found[kind, 2]) / 2 for kind in ("all", "bias")}
    assert one["all"] == 4 * (16 * N * d + H * N * N + statistics)
    assert one["bias"] == 4 * (9 * N * d + H * N * N + statistics)


def test_finishing_takes_the_saving_away_and_biases_merge() -> None:
    model = mobile()
    method = make("tinytl-bias")
    at = thrifty.attach(model, method)
    shake(at, 0.1)
    logits = run(model)
    with pytest.raises(CannotMerge, match=r"call method\.finish\(at\)"):
        at.merge()
    method.finish(at)
    assert not at.plan
    at.merge()
    assert torch.equal(run(model), logits)


def test_only_with_a_graph() -> None:
    model = mobile()
    at = thrifty.attach(model, thrifty.TinyTL())
    assert any(isinstance(e, Sparing) for e in at.edits.values())
    logits = run(model)
    with torch.no_grad():
        assert torch.equal(run(model), logits)


# -- weights of few values -------------------------------------------------------------------------------------------------------


def test_weights_of_few_values() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Linear(64, 64))
    before = [model[0].weight.clone(), model[1].weight.clone(), model[1].bias.clone()]
    quantise(model)
    for old, new in zip(before[:2], (model[0].weight, model[1].weight), strict=True):
        assert len(new.unique()) <= 256 < len(old.unique())
        assert float((new - old).square().mean().sqrt()) < 0.01 * float(old.std())
    assert torch.equal(model[1].bias, before[2])
    again = [model[0].weight.clone(), model[1].weight.clone()]
    quantise(model)
    assert all(torch.equal(a, b) for a, b in zip(again, (model[0].weight, model[1].weight), strict=True))


def test_centres_are_means_of_what_is_nearest() -> None:
    weight = torch.randn(500, generator=torch.Generator().manual_seed(0)).round(decimals=2)
    found = cluster(weight, 6, steps=500)
    centres = found.unique()
    assert len(centres) == 6
    assert torch.equal(found, centres[(weight[:, None] - centres).abs().argmin(1)])
    for centre in centres:
        assert float(weight[found == centre].mean()) == pytest.approx(float(centre), abs=1e-6)


def test_refusals() -> None:
    for settings, named in (({"mode": "last"}, "mode"), ({"expand": 0.0}, "expand"), ({"kernel": 4}, "kernel"),
                            ({"conv_groups": 0}, "conv_groups")):
        with pytest.raises(NoSuchSetting, match=f"{named} must be"):
            thrifty.attach(mobile(), make("tinytl", **settings))
    for kind in ("vit", "swin", "bert"):
        with pytest.raises(Unfit, match="set mode='bias'"):
            thrifty.attach(tiny(kind), thrifty.TinyTL())
    with pytest.raises(Unfit, match="5 groups do not divide the 8 channels"):
        thrifty.attach(mobile(), thrifty.TinyTL(conv_groups=5))


@pytest.mark.timm
def test_timm() -> None:
    backbone = make_tiny("timm_resnet")
    model = backbone.fresh()
    at = thrifty.attach(model, thrifty.TinyTL(), example=backbone.example)
    assert len(lite(at)) == 4 and torch.equal(backbone.output(model), backbone.output(backbone.fresh()))
    full = backbone.fresh()
    bytes_of = [measure(net, lambda net=net: net(backbone.example)) for net in (full, model)]
    assert bytes_of[1] < 0.7 * bytes_of[0]

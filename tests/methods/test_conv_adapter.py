"""Conv-Adapter: a reference array, published counts, its four designs by hand on four kinds of trunk, and its invariants."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import count, golden, published, run, shake, tiny
from torch import Tensor

import thrifty
from thrifty.core.errors import NoSuchSetting, NoSuchSite, Unfit
from thrifty.methods import make
from thrifty.methods.branches.conv_branch import ConvAside, ConvBranch, Convolutions, FinalNorm
from thrifty.methods.conv_adapter import DESIGNS
from thrifty.testing import tiny as families

GEOMETRY = {"stride": 1, "padding": 1, "dilation": 1, "init": "kaiming", "zero": "none"}


def branches(at: thrifty.Attachment) -> list[Any]:
    return [e for e in at.edits.values() if isinstance(e, (ConvBranch, ConvAside))]


def by_hand(net: Any, x: Tensor, act: Any, **geometry: Any) -> Tensor:
    """A(x), written out."""
    hidden = act(F.conv2d(x, net.depthwise.weight, net.depthwise.bias, groups=len(net.depthwise.weight), **geometry))
    out = torch.einsum("oi,bihw->bohw", net.pointwise.weight[:, :, 0, 0], hidden)
    return net.alpha.view(1, -1, 1, 1) * (out + net.pointwise.bias.view(1, -1, 1, 1))


def test_reference_array() -> None:
    g = golden("vision_convadapter_s1")
    net = Convolutions(16, 16, 4, 3, act="relu", **GEOMETRY)
    net.load_state_dict({"alpha": g["w/se"].flatten(), **{f"{ours}.{k}": g[f"w/{theirs}.{k}"] for ours, theirs in (
        ("depthwise", "conv1"), ("pointwise", "conv2")) for k in ("weight", "bias")}})
    torch.testing.assert_close(net(g["in/x"]), g["out/out"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("backbone", "reduction", "adapters", "beside"), [
    ("resnet-50", 4, 356_848, 4_096), ("resnet-50", 8, 199_192, 4_096), ("swin-b", 4, 2_361_536, 57_600),
    ("swin-b", 8, 1_487_584, 57_600)])
def test_counts(backbone: str, reduction: int, adapters: int, beside: int) -> None:
    at = thrifty.attach(published(backbone), thrifty.ConvAdapter(reduction=reduction))
    assert sum(p.numel() for e in branches(at) for p in e.parameters()) == adapters
    assert count(at) == adapters + beside


def test_counts_of_the_whole_trunk() -> None:
    model = published("resnet-50")
    thrifty.attach(model, thrifty.ConvAdapter())
    own = sum(p.numel() for n, p in model.named_parameters() if "edits" not in n.split("."))
    assert own + 4_096 == 23_512_128


def test_hidden_channels_see_neighbours_and_sizes_fit() -> None:
    net = Convolutions(12, 8, 3, 3, act="relu", **GEOMETRY)
    x = torch.randn(1, 12, 5, 5)
    for j in range(12):
        other = x.clone()
        other[:, j] += 1
        changed = (net.depthwise(other) != net.depthwise(x)).flatten(2).any(2)[0]
        assert changed.nonzero().flatten().tolist() == [j // 4]
    for stride in (1, 2):
        for side in (7, 8):
            net = Convolutions(12, 8, 3, 3, act="relu", **{**GEOMETRY, "stride": stride})
            x = torch.randn(1, 12, side, side)
            assert net(x).shape == torch.nn.Conv2d(12, 8, 3, stride, 1)(x).shape


def test_start() -> None:
    torch.manual_seed(0)
    net = Convolutions(256, 256, 64, 3, act="relu", **GEOMETRY)
    assert float(net.depthwise.weight.std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)  # by what it gives out
    assert float(net.pointwise.weight.std()) == pytest.approx((2 / 256) ** 0.5, rel=0.1)
    assert torch.equal(net.alpha, torch.ones(256)) and not net.depthwise.bias.any() and not net.pointwise.bias.any()
    net = Convolutions(256, 256, 64, 7, act="gelu", **{**GEOMETRY, "init": "truncated", "padding": 3})
    assert float(net.depthwise.weight.std()) == pytest.approx(0.02, rel=0.1) and not net.depthwise.bias.any()
    assert Convolutions(8, 8, 2, 7, act="gelu", **{**GEOMETRY, "init": "default"}).depthwise.bias.any()
    for zero in ("alpha", "pointwise"):
        for kind in ("resnet", "swin", "convnext"):
            model = tiny(kind, **({"layer_type": "bottleneck", "hidden_sizes": [16, 32]} if kind == "resnet" else {}))
            base = run(model)
            at = thrifty.attach(model, thrifty.ConvAdapter(zero=zero, reduction=2))
            torch.testing.assert_close(run(model), base, atol=1e-4, rtol=1e-4)  # but for the new batch norm's epsilon
            for e in at.edits.values():
                if isinstance(e, FinalNorm):
                    e.norm.eps = 0.0
            torch.testing.assert_close(run(model), base, atol=1e-6, rtol=1e-6)


def put(kind: str, design: str, **config: Any) -> tuple[Any, thrifty.Attachment, Tensor, list[Any]]:
    """A model with the method, other values in it, images, and its branches."""
    model = tiny(kind, **config).double()
    at = thrifty.attach(model, thrifty.ConvAdapter(design=design, reduction=2))
    shake(at)
    return model, at, torch.randn(2, 3, 32, 32).double(), branches(at)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("kind", ["bottleneck", "basic"])
def test_residual_networks_by_hand(kind: str, design: str) -> None:
    model, at, images, found = put("resnet", design, layer_type=kind, hidden_sizes=[16, 32])
    y = run(model, pixel_values=images)
    final = next(e for e in at.edits.values() if isinstance(e, FinalNorm))
    assert final.norm.num_features == 32
    at.disable()
    x = model.resnet.embedder(images)
    for i, stage in enumerate(model.resnet.encoder.stages):
        layer, net, stride = stage.layers[0], found[i].net, 1 + i
        steps = list(layer.layer)
        middle = steps[1] if kind == "bottleneck" else steps[0]  # the 3 × 3 convolution that counts
        z = x
        for step in steps:
            if step is middle and design == "conv-seq":
                h = step.convolution(z)
                z = step.activation(step.normalization(h + by_hand(net, h, torch.relu, padding=1)))
            elif step is middle and design == "conv-par" and kind == "basic":
                h = step.convolution(z) + by_hand(net, z, torch.relu, padding=1, stride=stride)
                z = step.activation(step.normalization(h))
            elif step is middle and design == "conv-par":
                z = step(z) + by_hand(net, z, torch.relu, padding=1, stride=stride)
            else:
                z = step(z)
        out = layer.activation(z + layer.shortcut(x))
        if design == "res-par":
            out = out + by_hand(net, x, torch.relu, padding=1, stride=stride)
        if design == "res-seq":
            out = out + by_hand(net, out, torch.relu, padding=1)
        x = out
    x = F.batch_norm(x, final.norm.running_mean, final.norm.running_var, final.norm.weight, final.norm.bias)
    torch.testing.assert_close(y, model.classifier(x.mean((2, 3)).flatten(1)[:, :, None, None]))


@pytest.mark.parametrize("design", DESIGNS)
def test_convnext_by_hand(design: str) -> None:
    model, at, images, found = put("convnext", design)
    with torch.no_grad():
        y = run(model, pixel_values=images)
    nets = {e.site.path.removeprefix("convnext.encoder.stages."): e.net for e in found}
    at.enable(False, lambda row: True)
    for name in at.base:  # the norms' trained values
        model.get_parameter(name).data.copy_(at.stash[name])
    assert len(nets) == (3 if design == "conv-par" else 2)
    x = model.convnext.embeddings(images)
    for i, stage in enumerate(model.convnext.encoder.stages):
        if i == 1:
            norm, conv = stage.downsampling_layer
            u = norm(x)
            x = conv(u) + (by_hand(nets["1.downsampling_layer.1"], u, F.gelu, stride=2) if design == "conv-par" else 0)
        block = stage.layers[0]
        net = nets[f"{i}.layers.0.dwconv" if design.startswith("conv") else f"{i}.layers.0"]
        h = block.dwconv(x)
        if design.startswith("conv"):
            h = h + by_hand(net, x if design == "conv-par" else h, F.gelu, padding=3)
        h = block.pwconv2(F.gelu(block.pwconv1(block.layernorm(h.permute(0, 2, 3, 1)))))
        out = x + (block.layer_scale_parameter * h).permute(0, 3, 1, 2)
        if design.startswith("res"):
            out = out + by_hand(net, x if design == "res-par" else out, F.gelu, padding=3)
        x = out
    torch.testing.assert_close(y, model.classifier(model.convnext.layernorm(x.mean((2, 3)))))


@pytest.mark.parametrize("design", DESIGNS)
def test_swin_by_hand(design: str) -> None:
    model, at, images, found = put("swin", design, depths=[2, 1])
    asked: list[Tensor] = []
    handles = [s.module.register_forward_hook(lambda m, a, y: asked.extend((a[0], y[0]))) for s in thrifty.sites(model, "block")]
    run(model, pixel_values=images)
    for handle in handles:
        handle.remove()
    at.disable()
    for name in at.base:
        model.get_parameter(name).data.copy_(at.stash[name])

    def adapt(net: Any, t: Tensor) -> Tensor:
        side = round(t.shape[1] ** 0.5)
        return by_hand(net, t.transpose(1, 2).unflatten(2, (side, side)), F.gelu, padding=3).flatten(2).transpose(1, 2)

    for i, (site, side) in enumerate(zip(thrifty.sites(model, "block"), (8, 8, 4), strict=True)):
        block, x, y, net = site.module, asked[2 * i], asked[2 * i + 1], found[i].net
        middle: list[Tensor] = []
        handle = block.layernorm_after.register_forward_pre_hook(lambda m, a, middle=middle: middle.append(a[0]))
        alone = block(x, (side, side))[0]
        handle.remove()
        if design.startswith("res"):
            torch.testing.assert_close(y, alone + adapt(net, x if design == "res-par" else alone))
            continue
        stream = middle[0] + adapt(net, block.layernorm_before(x) if design == "conv-par" else middle[0] - x)
        torch.testing.assert_close(y, stream + block.mlp(block.layernorm_after(stream)))


def test_statistics_move_and_are_saved(tmp_path: Any) -> None:
    for statistics in (True, False):
        model = tiny("resnet")
        base = {n: t.clone() for n, t in model.state_dict().items()}
        at = thrifty.attach(model, thrifty.ConvAdapter(reduction=2, statistics=statistics))
        optimiser = torch.optim.SGD(at.parameters(), lr=0.1)
        run(model.train()).square().sum().backward()
        optimiser.step()
        model.eval()
        moved = {n for n, t in base.items() if not torch.equal(t, model.state_dict()[n])}
        assert moved == ({n for n in base if "running" in n or "batches" in n} if statistics else set())
        y = run(model)
        at.save(tmp_path / str(statistics))
        at.detach()
        assert all(torch.equal(t, model.state_dict()[n]) for n, t in base.items())
        thrifty.load(model, tmp_path / str(statistics))
        assert torch.equal(run(model.eval()), y)


@pytest.mark.parametrize(("kind", "unfreeze", "trains"), [
    ("resnet", "layernorm", False), ("resnet", "norm", True), ("resnet", "bias", True), ("swin", "layernorm", True),
    ("swin", "none", False), ("convnext", "bias", True)])
def test_what_trains_beside_it(kind: str, unfreeze: str, trains: bool) -> None:
    model = tiny(kind)
    at = thrifty.attach(model, thrifty.ConvAdapter(reduction=2, unfreeze=unfreeze))
    own = {n.removeprefix("base:") for n, _ in at.named_parameters() if n.startswith("base:")}
    norms = {f"{s.path}.{k}" for s in thrifty.sites(model, "norm") for k in ("weight", "bias")}
    biases = {n for n, _ in model.named_parameters() if n.endswith(".bias") and "edits" not in n.split(".")
              and not n.startswith("classifier")}
    wanted = {"norm": norms, "none": set(), "layernorm": norms if kind == "swin" else set(),
              "bias": biases | (norms if kind != "resnet" else set())}[unfreeze]
    assert own == wanted and bool(own) == trains


def test_names() -> None:
    assert make("conv-par") == thrifty.ConvAdapter() and make("res-seq") == thrifty.ConvAdapter(design="res-seq")
    assert make("conv-adapter-norm").unfreeze == "norm" and make("conv-adapter-bias", reduction=8).reduction == 8


@pytest.mark.parametrize("design", DESIGNS)
def test_mobilenet(design: str) -> None:
    backbone = families.make("mobilenet_v2")
    model = backbone.fresh()
    at = thrifty.attach(model, thrifty.ConvAdapter(design=design), example=backbone.example)
    assert len(branches(at)) == 16
    shake(at, 0.1)
    assert backbone.output(model).isfinite().all()


@pytest.mark.timm
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("kind", ["timm_resnet", "timm_swin", "timm_convnext"])
def test_timm(kind: str, design: str) -> None:
    backbone = families.make(kind)
    model = backbone.fresh()
    at = thrifty.attach(model, thrifty.ConvAdapter(design=design, reduction=2), example=backbone.example)
    before = backbone.output(model)
    shake(at)
    assert not torch.allclose(backbone.output(model), before)
    assert len(branches(at)) == {"timm_resnet": 4, "timm_swin": 2, "timm_convnext": 4 + 3 * (design == "conv-par")}[kind]


def test_refusals() -> None:
    for settings in ({"design": "par"}, {"reduction": 0}, {"zero": "all"}, {"unfreeze": "all"}):
        with pytest.raises(NoSuchSetting, match=next(iter(settings))):
            thrifty.attach(tiny("resnet"), thrifty.ConvAdapter(**settings))
    with pytest.raises(Unfit, match="reduction 3 does not divide its 8 channels; 1, 2, 4, 8 do"):
        thrifty.attach(tiny("resnet"), thrifty.ConvAdapter(reduction=3))
    with pytest.raises(Unfit, match="special tokens"):
        thrifty.attach(tiny("vit"), thrifty.ConvAdapter())
    with pytest.raises(Unfit, match="patches"):
        thrifty.attach(tiny("bert"), thrifty.ConvAdapter())
    with pytest.raises(NoSuchSite, match="names no blocks"):
        thrifty.attach(tiny("resnet"), thrifty.ConvAdapter(where="conv"))

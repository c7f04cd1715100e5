"""Convpass: a reference array, published counts, the stream recomputed by hand, and its invariants."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from backbones import count, frozen_stay, golden, published, run, shake, tiny
from torch import Tensor

import thrifty
from thrifty.core.errors import DeadEdit, NoSuchSetting, Unfit
from thrifty.methods import make
from thrifty.methods.convpass import Bypass
from thrifty.testing import tiny as families


def bypasses(at: thrifty.Attachment) -> list[Any]:
    return [e for e in at.edits.values() if isinstance(e, Bypass)]


def images(model: Any) -> Tensor:
    side = model.config.image_size
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(5)).double()


def by_hand(e: Any, u: Tensor, special: int) -> Tensor:
    """The branch, position by position."""
    phi = lambda z: z / (1 + torch.exp(-1.702 * z))  # noqa: E731
    low = phi(u @ e.down.weight.T + e.down.bias)
    side = round((u.shape[1] - special) ** 0.5)
    kernel, out = e.conv.weight, []
    for token in range(u.shape[1]):
        total = low[:, token] @ kernel[:, :, 1, 1].T + e.conv.bias
        row, column = divmod(token - special, side)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                inside = 0 <= row + dy < side and 0 <= column + dx < side
                if token >= special and (dy or dx) and inside:
                    near = special + (row + dy) * side + column + dx
                    total = total + low[:, near] @ kernel[:, :, dy + 1, dx + 1].T
        out.append(total)
    return e.scale * (phi(torch.stack(out, 1)) @ e.up.weight.T + e.up.bias)


def test_reference_array() -> None:
    g = golden("vision_convpass")
    model = hf.ViTModel(hf.ViTConfig(num_hidden_layers=1), add_pooling_layer=False)
    e = bypasses(thrifty.attach(model, thrifty.Convpass(), check=False))[0]
    state = {"down": "adapter_down", "up": "adapter_up", "conv": "adapter_conv"}
    e.load_state_dict({f"{ours}.{k}": g[f"w/{theirs}.{k}"] for ours, theirs in state.items() for k in ("weight", "bias")})
    torch.testing.assert_close(e.eval().branch(g["in/x"]), g["out/out"], atol=1e-5, rtol=1e-5)


def test_counts() -> None:
    at = thrifty.attach(published("vit-b16"), thrifty.Convpass())
    assert count(at) == 327_552 and {sum(p.numel() for p in e.parameters()) for e in bypasses(at)} == {13_648}
    assert count(thrifty.attach(published("vit-b16"), make("convpass-attn"))) == 163_776
    stages = zip((2, 2, 18, 2), (128, 256, 512, 1024), strict=True)
    wanted = sum(2 * n * (2 * d * 8 + 8 + d + 9 * 64 + 8) for n, d in stages)
    assert count(thrifty.attach(published("swin-b"), thrifty.Convpass())) == wanted


@pytest.mark.parametrize("init", ["identity", "xavier"])
def test_start(init: str) -> None:
    model = tiny("vit", image_size=32)
    base = run(model)
    at = thrifty.attach(model, thrifty.Convpass(rank=5, init=init))
    torch.testing.assert_close(run(model), base, atol=0, rtol=0)
    for e in bypasses(at):
        identity = torch.zeros(5, 5, 3, 3)
        identity[:, :, 1, 1] = torch.eye(5)
        assert torch.equal(e.conv.weight, identity) == (init == "identity")
        assert float(e.conv.weight.abs().max()) <= (1 if init == "identity" else (6 / 90) ** 0.5)
        assert 0 < float(e.down.weight.abs().max()) <= (6 / 21) ** 0.5
        assert not any(t.any() for t in (e.up.weight, e.up.bias, e.conv.bias, e.down.bias))
    assert [e.drop_path.rate for e in bypasses(at)] == [0, 0, 0.1, 0.1]


@pytest.mark.parametrize("beside", ["both", "attn", "mlp"])
@pytest.mark.parametrize(("kind", "special"), [("vit", 1), ("deit", 2), ("dinov2", 1)])
def test_transformers_by_hand(kind: str, special: int, beside: str) -> None:
    model = tiny(kind, image_size=32).double()
    if kind == "dinov2":
        for block in model.dinov2.encoder.layer:
            block.layer_scale1.lambda1.data.fill_(0.4)
    at = thrifty.attach(model, thrifty.Convpass(rank=3, scale=0.7, beside=beside))
    shake(at)
    y = run(model, pixel_values=images(model))
    found = {e.site.path: e for e in bypasses(at)}
    at.disable()
    trunk = model.get_submodule(kind)
    x = trunk.embeddings(images(model))
    for site in thrifty.sites(model, "block"):
        block: Any = site.module
        names = ("norm1", "norm2") if kind == "dinov2" else ("layernorm_before", "layernorm_after")
        beside_attention, beside_network = (found.get(f"{site.path}.{n}") for n in names)
        assert (beside_attention is not None) == (beside != "mlp") and (beside_network is not None) == (beside != "attn")
        norm1, norm2 = (block.get_submodule(n) for n in names)
        scale1, scale2 = (getattr(block, f"layer_scale{i}", torch.nn.Identity()) for i in (1, 2))
        u = norm1(x)
        x = x + scale1(block.attention(u)[0]) + (by_hand(beside_attention, u, special) if beside_attention else 0)
        u = norm2(x)
        x = x + scale2(block.mlp(u)) + (by_hand(beside_network, u, special) if beside_network else 0)
    x = trunk.layernorm(x)
    if kind == "deit":
        wanted = (model.cls_classifier(x[:, 0]) + model.distillation_classifier(x[:, 1])) / 2
    else:
        wanted = model.classifier(x[:, 0] if kind == "vit" else torch.cat([x[:, 0], x[:, 1:].mean(1)], 1))
    torch.testing.assert_close(y, wanted)


def test_swin_by_hand() -> None:
    model = tiny("swin", depths=[2, 1]).double()
    at = thrifty.attach(model, thrifty.Convpass(rank=3, scale=0.7))
    shake(at)
    found = bypasses(at)
    asked: list[Tensor] = []
    handles = [s.module.register_forward_hook(lambda m, a, y: asked.extend((a[0], y[0]))) for s in thrifty.sites(model, "block")]
    run(model, pixel_values=images(model))
    for handle in handles:
        handle.remove()
    at.disable()
    for i, (site, side) in enumerate(zip(thrifty.sites(model, "block"), (8, 8, 4), strict=True)):
        block, x, y = site.module, asked[2 * i], asked[2 * i + 1]
        middle: list[Tensor] = []
        handle = block.layernorm_after.register_forward_pre_hook(lambda m, a, middle=middle: middle.append(a[0]))
        block(x, (side, side))
        handle.remove()
        first, second = found[2 * i : 2 * i + 2]
        stream = middle[0] + by_hand(first, block.layernorm_before(x), 0)  # the second block's windows are shifted, this is not
        u = block.layernorm_after(stream)
        torch.testing.assert_close(y, stream + block.mlp(u) + by_hand(second, u, 0))


def test_what_depends_on_where_a_patch_is() -> None:
    model = tiny("vit", image_size=48).double()
    e = bypasses(thrifty.attach(model, thrifty.Convpass(rank=4)))[0]
    with torch.no_grad():
        e.up.weight.normal_()
        u = torch.randn(1, 37, 16).double()
        order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(36)])
        torch.testing.assert_close(e.branch(u)[:, order], e.branch(u[:, order]))  # the identity sees each token alone
        e.conv.weight.normal_()
        assert not torch.allclose(e.branch(u)[:, order], e.branch(u[:, order]))
        other = torch.cat([u[:, :1], torch.randn(1, 36, 16).double()], 1)
        torch.testing.assert_close(e.branch(u)[:, 0], e.branch(other)[:, 0])  # the class token sees no patch
        moved = torch.cat([u[:, :1], u[:, 1:].unflatten(1, (6, 6)).roll((1, 1), (1, 2)).flatten(1, 2)], 1)
        inner = e.branch(u)[:, 1:].unflatten(1, (6, 6))[:, 1:4, 1:4]
        torch.testing.assert_close(e.branch(moved)[:, 1:].unflatten(1, (6, 6))[:, 2:5, 2:5], inner)


def test_a_hidden_width_of_one() -> None:
    model = tiny("vit")
    e = bypasses(thrifty.attach(model, thrifty.Convpass(rank=1, init="xavier")))[0]
    shake(thrifty.attachments(model)["default"])
    u = torch.randn(2, 5, 16)
    torch.testing.assert_close(e.branch(u), by_hand(e, u, 1), atol=1e-5, rtol=1e-5)


def test_paths_drop_in_training_alone_and_trains() -> None:
    model = tiny("vit")
    at = thrifty.attach(model, thrifty.Convpass(rank=4, drop_path=0.9, dropout=0.0))
    shake(at)
    e = bypasses(at)[-1].train()
    u = torch.randn(64, 5, 16)
    kept = e.branch(u).flatten(1).any(1)
    assert 0 < int(kept.sum()) < 30
    torch.testing.assert_close(e.branch(u)[:0], e.eval().branch(u)[:0])
    assert e.branch(u).flatten(1).any(1).all()
    assert all("edits" in n.split(".") for n in frozen_stay(model.eval(), at))


@pytest.mark.timm
@pytest.mark.parametrize("kind", ["timm_vit", "timm_swin"])
def test_timm(kind: str) -> None:
    backbone = families.make(kind)
    model = backbone.fresh()
    at = thrifty.attach(model, thrifty.Convpass(rank=4), example=backbone.example)
    torch.testing.assert_close(backbone.output(model), backbone.output(backbone.fresh()), atol=0, rtol=0)
    shake(at)
    assert not torch.allclose(backbone.output(model), backbone.output(backbone.fresh()))


def test_refusals() -> None:
    for settings in ({"rank": 0}, {"init": "zero"}, {"dropout": 1.0}, {"drop_path": -0.1}, {"beside": "none"}):
        with pytest.raises(NoSuchSetting, match=next(iter(settings))):
            thrifty.attach(tiny("vit"), thrifty.Convpass(**settings))
    with pytest.raises(Unfit, match="patches"):
        thrifty.attach(tiny("gpt2"), thrifty.Convpass())
    model = tiny("vit", image_size=[16, 24])
    with pytest.raises(Unfit, match="no square grid"):
        thrifty.attach(model, thrifty.Convpass(), example=torch.zeros(1, 3, 16, 24))
    model = tiny("vit")
    at = thrifty.attach(model, thrifty.Convpass())
    at.disable(lambda row: row.edit == "convpass")
    with pytest.raises(DeadEdit, match="switch both on or off"):
        run(model)

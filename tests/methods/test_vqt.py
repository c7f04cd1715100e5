"""VQT: reference arrays, published counts, and what its equations promise."""
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from backbones import count, frozen_stay, golden, reference_vit, run, shake, tiny
from torch import Tensor

import thrifty
from thrifty.core.errors import CannotMerge, DeadEdit, NoSuchSetting, Unfit
from thrifty.methods import make
from thrifty.methods.features.feature_head import head_of
from thrifty.methods.vqt import Queries

IMAGES = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def queries(at: thrifty.Attachment) -> list[Queries]:
    return [e for e in at.edits.values() if isinstance(e, Queries)]


def gather(model: Any, at: thrifty.Attachment, images: Tensor) -> Tensor:
    """The features [batch, width] that the head reads."""
    found: list[Tensor] = []
    handle = head_of(at).linear.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    model(images)
    handle.remove()
    return found[0]


def block_by_hand(layer: Any, rows: Tensor, x: Tensor) -> Tensor:
    """A ViT block on ``rows`` [batch, n, d], which attend to the tokens x [batch, m, d]."""
    own = layer.attention
    u, w = layer.layernorm_before(rows), layer.layernorm_before(x)
    q, k, v = (p(t).unflatten(-1, (own.num_attention_heads, -1)).transpose(1, 2)
               for p, t in ((own.q_proj, u), (own.k_proj, w), (own.v_proj, w)))
    a = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1) @ v
    rows = rows + own.o_proj(a.transpose(1, 2).flatten(2))
    return rows + layer.mlp(layer.layernorm_after(rows))


def by_hand(model: Any, prompts: list[Tensor], images: Tensor) -> Tensor:
    """The features, with queries and tokens in one sequence and everything in one graph."""
    x, found = model.vit.embeddings(images), []
    for layer, prompt in zip(model.vit.layers, prompts, strict=True):
        every = block_by_hand(layer, torch.cat([prompt.expand(len(x), -1, -1), x], 1), x)
        found.append(every[:, : len(prompt)].flatten(1))
        x = every[:, len(prompt) :]
    pieces = [model.vit.layernorm(x)[:, 0], *found]
    return torch.cat([piece / piece.norm(dim=1, keepdim=True) for piece in pieces], 1)


def test_reference_arrays() -> None:
    g = golden("vision_vqt")
    model = reference_vit(g)
    at = thrifty.attach(model, thrifty.VQT(length=g["hp/queries"]))
    with torch.no_grad():
        for edit, value in zip(queries(at), g["w/transformer.encoder.query_prompt_embeddings"], strict=True):
            edit.prompt.copy_(value)
    features = gather(model, at, g["in/pixel_values"])
    torch.testing.assert_close(features, g["out/features"], atol=1e-5, rtol=1e-5)
    for i, (edit, value) in enumerate(zip(queries(at), g["out/query_outputs"], strict=True)):
        left = at.context.taps[f"queries {edit.site.path}"]
        torch.testing.assert_close(left.view_as(value), value, atol=1e-5, rtol=1e-5, msg=f"block {i}")
    encoded = model.vit(g["in/pixel_values"]).last_hidden_state
    torch.testing.assert_close(encoded, g["out/encoded_tokens"], atol=1e-5, rtol=1e-5)
    (features * g["in/probe"]).sum().backward()
    for edit, grad in zip(queries(at), g["grad/transformer.encoder.query_prompt_embeddings"], strict=True):
        torch.testing.assert_close(edit.prompt.grad, grad, atol=1e-5, rtol=1e-4)


def test_counts() -> None:
    with torch.device("meta"):
        model = hf.ViTForImageClassification(hf.ViTConfig(num_labels=100))
    at = thrifty.attach(model, thrifty.VQT())
    assert head_of(at).linear.in_features == 9_984
    assert count(at) == 9_216 + 998_500
    assert sum(e.prompt.numel() for e in queries(at)) == 9_216


def test_start_values() -> None:
    model = hf.ViTForImageClassification(hf.ViTConfig(num_hidden_layers=2, num_labels=7))
    at = thrifty.attach(model, thrifty.VQT(length=50), check=False, also_train="head")
    for edit in queries(at):
        assert edit.prompt.abs().max() <= 0.0625 and float(edit.prompt.std()) == pytest.approx(0.0625 / 3**0.5, rel=0.02)
    head = head_of(at).linear
    torch.testing.assert_close(head.bias, torch.full((7,), -4.59512))
    assert float(head.weight.detach().std()) == pytest.approx((2 / 7) ** 0.5, rel=0.02)
    assert not at.base  # the model's own head neither trains nor counts


def test_by_hand_and_without_a_graph_of_the_tokens() -> None:
    model = tiny("vit").double()
    at = thrifty.attach(model, thrifty.VQT(length=3, dropout=0.0))
    shake(at)
    prompts, head = [e.prompt.detach().requires_grad_() for e in queries(at)], head_of(at).linear
    graphs: list[bool] = []
    for layer in model.vit.layers:
        layer.register_forward_hook(lambda module, args, out: graphs.append(out.requires_grad))
    features = gather(model, at, IMAGES)
    probe = torch.randn(features.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    (features * probe).sum().backward()
    logits = run(model, pixel_values=IMAGES)
    assert graphs and not any(graphs)
    at.disable()
    wanted = by_hand(model, prompts, IMAGES)
    torch.testing.assert_close(features, wanted)
    torch.testing.assert_close(logits, F.linear(wanted, head.weight, head.bias))
    (wanted * probe).sum().backward()
    for edit, prompt in zip(queries(at), prompts, strict=True):
        torch.testing.assert_close(edit.prompt.grad, prompt.grad)


def test_the_tokens_are_the_frozen_models_bit_for_bit() -> None:
    model = tiny("vit")
    wanted = model.vit(IMAGES.float()).last_hidden_state
    shake(thrifty.attach(model, thrifty.VQT(length=3)))
    assert torch.equal(model.vit(IMAGES.float()).last_hidden_state, wanted)


def test_slices_of_the_features() -> None:
    model = tiny("vit").double()
    at = thrifty.attach(model, thrifty.VQT(length=3))
    shake(at)
    before = gather(model, at, IMAGES)
    pieces = before.split([16, 48, 48], 1)
    for piece in pieces:
        torch.testing.assert_close(piece.norm(dim=1), torch.ones(2, dtype=torch.float64))
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        queries(at)[1].prompt.copy_(queries(at)[1].prompt[order])
    after = gather(model, at, IMAGES).split([16, 48, 48], 1)
    assert torch.equal(after[0], pieces[0]) and torch.equal(after[1], pieces[1])
    torch.testing.assert_close(after[2].view(2, 3, 16), pieces[2].view(2, 3, 16)[:, order])


@pytest.mark.parametrize(("kind", "width"), [("vit", 16), ("dinov2", 32)])
def test_trains_saves_and_leaves(kind: str, width: int, tmp_path: Any) -> None:
    model = tiny(kind)
    base = run(model)
    at = thrifty.attach(model, thrifty.VQT(length=2), also_train="head")
    assert head_of(at).linear.in_features == width + 2 * 2 * 16  # DINOv2's own head reads two vectors
    assert len(frozen_stay(model, at)) == 4
    y = run(model.eval())
    at.save(tmp_path / "queries")
    fresh = tiny(kind, seed=0)
    torch.nn.init.normal_(fresh.classifier.weight)  # nobody reads it any more
    thrifty.load(fresh, tmp_path / "queries")
    assert torch.equal(run(fresh), y)
    with pytest.raises(CannotMerge):
        at.merge()
    at.detach()
    assert torch.equal(run(model), base)


def test_blocks_may_be_recomputed() -> None:
    grads = []
    for recompute in (False, True):
        model = tiny("vit")
        at = thrifty.attach(model, thrifty.VQT(length=2, dropout=0.0))
        shake(at)
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        run(model.train()).square().sum().backward()
        grads.append([p.grad for p in at.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_a_compressed_head() -> None:
    model = tiny("vit").double()
    method = make("vqt", length=2, keep=0.3, lasso=0.5, choose=0.5, dropout=0.0)
    at = thrifty.attach(model, method)
    shake(at)
    head, width = head_of(at), 16 + 2 * 2 * 16
    sizes = head.linear.weight.detach().square().sum(0).sqrt()
    torch.testing.assert_close(method.penalty(at).detach(), 0.5 * sizes.sum())
    assert not method.settled(at)
    method.step(at, 4, 10)
    assert not method.settled(at)
    method.step(at, 5, 10)
    assert method.settled(at) and method.penalty(at) == 0.0
    wanted = sorted(sizes.topk(int(0.3 * width)).indices.tolist())
    assert head.mask.nonzero().flatten().tolist() == wanted
    y, features = run(model, pixel_values=IMAGES), gather(model, at, IMAGES)
    torch.testing.assert_close(y, F.linear(features[:, wanted], head.linear.weight[:, wanted], head.linear.bias))
    run(model).sum().backward()
    assert not head.linear.weight.grad[:, ~head.mask].any()
    method.finish(at)
    assert head_of(at).linear.weight.shape == (2, len(wanted)) and head_of(at).columns.tolist() == wanted
    torch.testing.assert_close(run(model, pixel_values=IMAGES), y)


def test_a_compressed_head_is_saved_and_one_that_ended_early_is_compressed(tmp_path: Any) -> None:
    model = tiny("vit")
    at = thrifty.attach(model, method := thrifty.VQT(keep=0.7))
    shake(at)
    method.finish(at)
    assert head_of(at).linear.in_features == int(0.7 * 48)
    at.save(tmp_path / "kept")
    fresh = tiny("vit")
    thrifty.load(fresh, tmp_path / "kept")
    assert torch.equal(run(fresh), run(model))


def test_refusals() -> None:
    for kind, why in (("swin", "stages"), ("resnet", "patches"), ("deit", "classifier")):
        with pytest.raises(Unfit, match=why):
            thrifty.attach(tiny(kind), thrifty.VQT())
    with pytest.raises(Unfit, match="no head"):
        thrifty.attach(hf.ViTModel(tiny("vit").config), thrifty.VQT())
    for setting, value in (("length", 0), ("dropout", 1.0), ("keep", 0.0), ("keep", 1e-4), ("lasso", -1.0), ("choose", 1.0)):
        with pytest.raises(NoSuchSetting, match=setting):
            thrifty.attach(tiny("vit"), make("vqt", **{setting: value}))
    at = thrifty.attach(model := tiny("vit"), thrifty.VQT())
    at.disable(lambda row: row.edit == "vqt-queries")
    at.context.taps.clear()
    with pytest.raises(DeadEdit, match="together"):
        run(model)


@pytest.mark.timm
def test_timm() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=16, num_heads=2, img_size=32, num_classes=3).eval()
    x = torch.randn(2, 3, 32, 32)
    tokens = model.forward_features(x)
    at = thrifty.attach(model, thrifty.VQT(length=2))
    shake(at)
    assert model(x).shape == (2, 3) and torch.equal(model.forward_features(x), tokens)
    assert head_of(at).linear.in_features == 16 + 2 * 2 * 16

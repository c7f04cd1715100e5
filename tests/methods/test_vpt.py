"""VPT: reference arrays, published counts, and what its equations promise."""
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers as hf
from backbones import count, frozen_stay, golden, published, reference_vit, run, shake, tiny

import thrifty
from thrifty.core.errors import NoSuchSetting, NoSuchSite, Unfit
from thrifty.methods import make
from thrifty.methods.prompts.tokens import Tokens, TokensOff


def tokens(at: thrifty.Attachment) -> list[Tokens]:
    return [e for e in at.edits.values() if isinstance(e, Tokens)]


def test_reference_arrays() -> None:
    g = golden("vision_vpt_deep")
    model = reference_vit(g)
    at = thrifty.attach(model, thrifty.VPT(length=g["hp/prompts"]))
    wanted = [g["w/transformer.prompt_embeddings"][0], *g["w/transformer.deep_prompt_embeddings"]]
    with torch.no_grad():
        for edit, value in zip(tokens(at), wanted, strict=True):
            edit.prompt.copy_(value)
    logits = model(pixel_values=g["in/pixel_values"]).logits
    torch.testing.assert_close(logits, g["out/logits"], atol=1e-5, rtol=1e-5)
    encoded = g["out/encoded_tokens"]
    without = torch.cat([encoded[:, :1], encoded[:, 5:]], 1)
    torch.testing.assert_close(model.vit(g["in/pixel_values"]).last_hidden_state, without, atol=2e-5, rtol=1e-5)
    (logits * g["in/probe"]).sum().backward()
    grads = [g["grad/transformer.prompt_embeddings"][0], *g["grad/transformer.deep_prompt_embeddings"]]
    for edit, grad in zip(tokens(at), grads, strict=True):
        torch.testing.assert_close(edit.prompt.grad, grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("length", "shallow", "deep"), [(1, 768, 9_216), (10, 7_680, 92_160), (50, 38_400, 460_800),
                                                         (100, 76_800, 921_600)])
def test_counts(length: int, shallow: int, deep: int) -> None:
    assert count(thrifty.attach(published("vit-b16"), thrifty.VPT(length=length))) == deep
    at = thrifty.attach(published("vit-b16"), make("vpt-shallow", length=length))
    assert count(at) == shallow and at.method == thrifty.VPT(length=length, deep=False, dropout=0.0)
    model = hf.ViTForImageClassification(hf.ViTConfig(num_labels=10, num_hidden_layers=2))
    assert count(thrifty.attach(model, thrifty.VPT(length=length), also_train="head", check=False)) == 2 * length * 768 + 769 * 10


def test_start_values() -> None:
    at = thrifty.attach(hf.ViTModel(hf.ViTConfig(num_hidden_layers=2)), thrifty.VPT(length=100), check=False)
    for edit in tokens(at):
        assert edit.prompt.abs().max() <= 0.0625 and float(edit.prompt.std()) == pytest.approx(0.0625 / 3**0.5, rel=0.02)
    small = tokens(thrifty.attach(tiny("vit"), thrifty.VPT(length=50)))[0].prompt
    bound = math.sqrt(6 / (3 * 8 * 8 + 16))
    assert 0.9 * bound < float(small.abs().max()) <= bound


@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2"])
@pytest.mark.parametrize("deep", [True, False])
def test_acts_trains_and_leaves(kind: str, deep: bool) -> None:
    model = tiny(kind)
    at = thrifty.attach(model, thrifty.VPT(length=3, deep=deep))
    assert len(tokens(at)) == (2 if deep else 1)
    assert {e.special for e in tokens(at)} == {2 if kind == "deit" else 1}
    with at.disabled():
        base = run(model)
    shake(at)
    assert run(model).shape == base.shape and not torch.allclose(run(model), base, atol=1e-4)
    assert len(frozen_stay(model, at)) == len(tokens(at))
    at.detach()
    torch.testing.assert_close(run(model), base, atol=1e-6, rtol=1e-6)


def test_no_tokens_is_the_base_and_their_order_is_nothing() -> None:
    model = tiny("vit").double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    base = run(model, pixel_values=images)
    at = thrifty.attach(model, thrifty.VPT(length=4))
    shake(at)
    y = run(model, pixel_values=images)
    with torch.no_grad():
        for edit in tokens(at):
            edit.prompt.copy_(edit.prompt[torch.tensor([3, 1, 0, 2])])
    torch.testing.assert_close(run(model, pixel_values=images), y)
    torch.testing.assert_close(run(model, pixel_values=images[:1]), y[:1])  # whoever else is in the batch
    for edit in at.edits.values():
        if isinstance(edit, Tokens):
            edit.prompt, edit.after = torch.nn.Parameter(edit.prompt[:0].detach()), 1
        elif isinstance(edit, TokensOff):
            edit.length = 0
    torch.testing.assert_close(run(model, pixel_values=images), base, atol=1e-12, rtol=1e-12)


def test_deep_tokens_are_overwritten_and_shallow_ones_flow_on() -> None:
    for deep in (True, False):
        model = tiny("vit")
        at = thrifty.attach(model, thrifty.VPT(length=4, deep=deep))
        y = run(model)
        noise = model.vit.layers[0].register_forward_hook(
            lambda m, a, out: torch.cat([out[:, :1], torch.randn_like(out[:, 1:5]), out[:, 5:]], 1))
        assert torch.equal(run(model), y) == deep
        noise.remove()
        at.detach()


def test_one_block_makes_deep_and_shallow_the_same() -> None:
    outputs = []
    for deep in (True, False):
        model = tiny("vit", num_hidden_layers=1)
        shake(thrifty.attach(model, thrifty.VPT(length=4, deep=deep)))
        outputs.append(run(model))
    assert torch.equal(*outputs)


def test_by_hand() -> None:
    model = tiny("vit").double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    at = thrifty.attach(model, thrifty.VPT(length=3))
    shake(at)
    y = run(model, pixel_values=images)
    prompts = [e.prompt for e in tokens(at)]
    at.disable()
    x = model.vit.embeddings(images)
    for block, prompt in zip(model.vit.layers, prompts, strict=True):
        out = block(torch.cat([x[:, :1], prompt.expand(2, -1, -1), x[:, 1:]], 1))
        x = torch.cat([out[:, :1], out[:, 4:]], 1)
    torch.testing.assert_close(y, model.classifier(model.vit.layernorm(x)[:, 0]))


def test_dropout_is_per_image_and_in_training_only() -> None:
    model = tiny("vit")
    at = thrifty.attach(model, thrifty.VPT(length=50, dropout=0.5))
    edit = tokens(at)[0]
    assert torch.equal(run(model), run(model))
    model.train()
    x = edit(torch.zeros(2, 5, 16))
    assert not torch.equal(x[0], x[1]) and not x[:, 0].any() and not x[:, 51:].any()
    assert float((x[:, 1:51] == 0).float().mean()) == pytest.approx(0.5, abs=0.05)


def test_tokens_may_go_through_one_projection() -> None:
    at = thrifty.attach(published("vit-b16"), thrifty.VPT(length=10, project=32))
    assert count(at) == 12 * 10 * 32 + 32 * 768 + 768
    model = tiny("vit").double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    at = thrifty.attach(model, thrifty.VPT(length=3, project=5))
    bound = math.sqrt(6 / (3 * 8 * 8 + 5))
    assert all(float(e.prompt.abs().max()) <= bound and e.prompt.shape == (3, 5) for e in tokens(at))
    shake(at)
    y, linear = run(model, pixel_values=images), at.context.shared.linear
    prompts = [e.prompt @ linear.weight.T + linear.bias for e in tokens(at)]
    at.disable()
    x = model.vit.embeddings(images)
    for block, prompt in zip(model.vit.layers, prompts, strict=True):
        out = block(torch.cat([x[:, :1], prompt.expand(2, -1, -1), x[:, 1:]], 1))
        x = torch.cat([out[:, :1], out[:, 4:]], 1)
    torch.testing.assert_close(y, model.classifier(model.vit.layernorm(x)[:, 0]))
    with pytest.raises(Unfit, match="widths"):
        thrifty.attach(tiny("swin"), thrifty.VPT(project=5))


def test_the_backbone_drops_nothing_while_tokens_train() -> None:
    model = tiny("vit", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    at = thrifty.attach(model, thrifty.VPT(length=3, dropout=0.0), also_train="head")
    y = run(model)
    assert torch.equal(run(model.train()), y)
    assert model.training and tokens(at)[0].training and not model.vit.layers[0].attention.training
    torch._dynamo.reset()
    compiled: Any = torch.compile(model.train(), fullgraph=True, backend="eager")
    torch.testing.assert_close(run(compiled), y)
    torch._dynamo.reset()
    at.detach()
    assert not torch.equal(run(model.train()), run(model))


def test_some_of_the_blocks() -> None:
    model = tiny("vit", num_hidden_layers=4)
    last = thrifty.attach(model, thrifty.VPT(length=3, where="block[2:4]"))
    assert [row.depth for row in last.plan if row.path] == [2, 3, 3] and run(model).isfinite().all()
    last.detach()
    first = thrifty.attach(model, thrifty.VPT(length=3, where="block[0:2]"))
    assert [row.depth for row in first.plan if row.path] == [0, 1, 3] and run(model).isfinite().all()


def test_only_the_tower_that_reads_images() -> None:
    text = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    image = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    model = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=image, projection_dim=8)).eval()
    at = thrifty.attach(model, thrifty.VPT(length=3))
    assert len(tokens(at)) == 3 and {e.special for e in tokens(at)} == {1}
    assert all("vision_model" in row.path for row in at.plan if row.path)
    batch = {"input_ids": torch.tensor([[1, 5, 63]]), "pixel_values": torch.randn(2, 3, 16, 16)}
    assert model(**batch).logits_per_image.shape == (2, 1)
    with pytest.raises(NoSuchSite, match="reads images"):
        thrifty.attach(model, thrifty.VPT(where="text_model.encoder.layers.?"), "text")


def test_saved_and_loaded(tmp_path: Any) -> None:
    model = tiny("deit")
    shake(at := thrifty.attach(model, thrifty.VPT(length=3), also_train="head"))
    at.save(tmp_path / "tokens")
    fresh = tiny("deit")
    thrifty.load(fresh, tmp_path / "tokens")
    assert torch.equal(run(fresh), run(model))


def test_refusals() -> None:
    for kind, why in (("beit", "bias"), ("resnet", "patches"), ("bert", "patches")):
        with pytest.raises(Unfit, match=why):
            thrifty.attach(tiny(kind), thrifty.VPT())
    for setting, value in (("length", 0), ("dropout", 1.0), ("project", -1)):
        with pytest.raises(NoSuchSetting, match=setting):
            thrifty.attach(tiny("vit"), thrifty.VPT(**{setting: value}))


@pytest.mark.timm
def test_timm() -> None:
    timm = pytest.importorskip("timm")
    sizes = {"depth": 2, "embed_dim": 16, "num_heads": 2, "img_size": 32, "num_classes": 3}
    for name, special, pool in (("vit_tiny_patch16_224", 1, "token"), ("vit_tiny_patch16_224", 1, "avg"),
                                ("deit_tiny_distilled_patch16_224", 2, "token")):
        model = timm.create_model(name, global_pool=pool, **sizes).eval()
        torch.nn.init.normal_(model.head.weight)
        at = thrifty.attach(model, thrifty.VPT(length=3))
        assert {e.special for e in tokens(at)} == {special} and len(tokens(at)) == 2
        x = torch.randn(2, 3, 32, 32)
        y = model(x)
        at.disable()
        assert y.shape == model(x).shape and not torch.equal(y, model(x))
    with pytest.raises(Unfit, match="stages"):
        thrifty.attach(timm.create_model("pvt_v2_b0"), thrifty.VPT())

"""VPT on Swin: what every window sees, recomputed window by window, published counts, and that images stay apart."""
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from backbones import count, frozen_stay, run, shake, tiny
from torch import Tensor

import thrifty
from thrifty.core.errors import DeadEdit, NoSuchSite, Unfit
from thrifty.methods import make
from thrifty.methods.prompts.windows import WindowStart, WindowTokens
from thrifty.testing import contract
from thrifty.testing import tiny as backbones

IMAGES = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def swin(**config: Any) -> Any:
    """8 × 8 patches in four windows of 4 × 4, the second block shifted; then 4 × 4 patches in one window."""
    model = tiny("swin", depths=[2, 2], **config).double()
    for name, p in model.named_parameters():
        if name.endswith("bias_table"):
            torch.nn.init.normal_(p)
    return model


def swin_b() -> Any:
    with torch.device("meta"):
        return hf.SwinModel(hf.SwinConfig(embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32]))


def starts(at: thrifty.Attachment) -> list[WindowStart]:
    return [e for e in at.edits.values() if isinstance(e, WindowStart)]


def split(layer: Any, x: Tensor) -> list[Tensor]:
    """q, k, v [heads, tokens, dim] of tokens [tokens, d]."""
    own = layer.attention
    return [p(x).view(len(x), own.num_attention_heads, -1).transpose(0, 1) for p in (own.q_proj, own.k_proj, own.v_proj)]


def block_by_hand(layer: Any, z: Tensor, x: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """One Swin block on the tokens z [p, d] and the patches x [side * side, d] of one image."""
    window, shift, p = min(4, side), 0 if side <= 4 else layer.shift_size, len(z)
    seen = layer.layernorm_before(x).view(side, side, -1).roll((-shift, -shift), (0, 1))
    mask = layer.get_attn_mask(side, side, dtype=x.dtype, device=x.device) if shift else None
    bias, out, answers = layer.attention.relative_position_bias()[0], torch.zeros_like(seen), []
    for i in range(0, side, window):
        for j in range(0, side, window):
            inside = seen[i : i + window, j : j + window].reshape(window * window, -1)
            q, k, v = split(layer, torch.cat([layer.layernorm_before(z), inside]))
            logits = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
            logits[:, p:, p:] += bias if mask is None else bias + mask[(i // window) * (side // window) + j // window]
            y = layer.attention.o_proj((logits.softmax(-1) @ v).transpose(0, 1).flatten(1))
            answers.append(y[:p])
            out[i : i + window, j : j + window] = y[p:].view(window, window, -1)
    x = x + out.roll((shift, shift), (0, 1)).reshape(side * side, -1)
    z = z + torch.stack(answers).mean(0)
    return z + layer.mlp(layer.layernorm_after(z)), x + layer.mlp(layer.layernorm_after(x))


def by_hand(model: Any, prompts: dict[int, Tensor], image: Tensor) -> Tensor:
    """Logits of one image; at each depth in ``prompts`` the tokens start anew."""
    x, side, depth = model.swin.embeddings(image[None])[0][0], 8, 0
    z = x[:0]
    for stage in model.swin.encoder.layers:
        for layer in stage.blocks:
            z, x = block_by_hand(layer, prompts.get(depth, z), x, side)
            depth += 1
        if stage.downsample is not None:
            z = stage.downsample.reduction(stage.downsample.norm(torch.cat([z, z, z, z], 1)))
            x, side = stage.downsample(x[None], (side, side))[0], side // 2
    return model.classifier(model.swin.layernorm(torch.cat([z, x])).mean(0))


@pytest.mark.parametrize(("settings", "depths"), [({"deep": True}, [0, 1, 2, 3]), ({"deep": False}, [0]),
                                                  ({"deep": True, "where": "block[1:3]"}, [1, 2]),
                                                  ({"deep": True, "where": "block[1:2]|block[3:4]"}, [1, 3])])
def test_by_hand(settings: dict[str, Any], depths: list[int]) -> None:
    model = swin()
    at = thrifty.attach(model, thrifty.VPT(length=3, dropout=0.0, **settings))
    shake(at)
    prompts = dict(zip(depths, [e.prompt.detach() for e in starts(at)], strict=True))
    y = run(model, pixel_values=IMAGES)
    at.disable()
    with torch.no_grad():
        wanted = torch.stack([by_hand(model, prompts, image) for image in IMAGES])
        bare = torch.stack([by_hand(model, {}, image) for image in IMAGES])
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(run(model, pixel_values=IMAGES), bare)  # the recomputation itself, against transformers


@pytest.mark.parametrize("name", ["vpt", "vpt-shallow"])
def test_images_of_a_batch_stay_apart(name: str) -> None:
    model = swin()
    at = thrifty.attach(model, make(name, length=3))
    shake(at)
    together = run(model, pixel_values=IMAGES)
    torch.testing.assert_close(torch.cat([run(model, pixel_values=image[None]) for image in IMAGES]), together)
    others = torch.cat([IMAGES[:1], 5 * IMAGES[1:]])
    torch.testing.assert_close(run(model, pixel_values=others)[0], together[0])


def test_no_tokens_is_the_base_and_their_order_is_nothing() -> None:
    model = swin()
    base = run(model, pixel_values=IMAGES)
    at = thrifty.attach(model, thrifty.VPT(length=4, deep=False))
    shake(at)
    y = run(model, pixel_values=IMAGES)
    edit = starts(at)[0]
    with torch.no_grad():
        edit.prompt.copy_(edit.prompt[torch.tensor([3, 1, 0, 2])])
    torch.testing.assert_close(run(model, pixel_values=IMAGES), y)
    edit.prompt = torch.nn.Parameter(edit.prompt[:0].detach())
    torch.testing.assert_close(run(model, pixel_values=IMAGES), base, atol=1e-12, rtol=1e-12)


def test_counts_and_start_values() -> None:
    model = swin_b()
    at = thrifty.attach(model, thrifty.VPT(length=10))
    assert count(at) == 12_032 * 10 and len(starts(at)) == 24
    assert count(thrifty.attach(model, make("vpt-shallow", length=1), "other")) == 128
    at = thrifty.attach(hf.SwinModel(hf.SwinConfig(embed_dim=128, depths=[1, 1], num_heads=[4, 8], image_size=56)),
                        thrifty.VPT(length=50))
    bound = math.sqrt(6 / (48 + 128))
    assert bound == pytest.approx(0.18464, abs=5e-6)
    for edit in starts(at):
        assert 0.99 * bound < float(edit.prompt.abs().max()) <= bound
        assert float(edit.prompt.std()) == pytest.approx(bound / 3**0.5, rel=0.03)


@pytest.mark.parametrize("name", ["vpt", "vpt-shallow"])
def test_trains_and_leaves(name: str, tmp_path: Any) -> None:
    model = tiny("swin", depths=[2, 2])
    base = run(model)
    at = thrifty.attach(model, make(name, length=3))
    assert len(frozen_stay(model, at)) == len(starts(at)) == (4 if name == "vpt" else 1)
    y = run(model.eval())
    at.save(tmp_path / "tokens")
    fresh = tiny("swin", depths=[2, 2])
    thrifty.load(fresh, tmp_path / "tokens")
    assert torch.equal(run(fresh), y) and not torch.allclose(y, base, atol=1e-4)
    at.detach()
    assert torch.equal(run(model), base)


@pytest.mark.parametrize("name", ["vpt", "vpt-shallow"])
def test_blocks_may_be_recomputed(name: str) -> None:
    grads = []
    for recompute in (False, True):
        model = swin(drop_path_rate=0.5)
        at = thrifty.attach(model, make(name, length=3, dropout=0.0))
        shake(at)
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        run(model.train(), pixel_values=IMAGES).square().sum().backward()
        grads.append([e.prompt.grad for e in starts(at)])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("promise", [p for p in contract.PROMISES if p not in (contract.compiles, contract.routes_rows)],
                         ids=lambda p: p.__name__)
def test_the_contract_on_swin(promise: contract.Promise) -> None:
    promise(make("vpt-shallow", length=3), backbones.make("swin"))


def test_the_contract_on_swin_compiled() -> None:
    contract.compiles(thrifty.VPT(length=3), backbones.make("swin"))


def test_a_model_without_pooling_takes_tokens_too() -> None:
    model = hf.SwinModel(tiny("swin").config, add_pooling_layer=False).eval()
    at = thrifty.attach(model, thrifty.VPT(length=3, deep=False))
    last = [e for e in at.edits.values() if isinstance(e, WindowTokens)][-1]
    assert last.into == ""
    shake(at)
    images = IMAGES.float()
    y = model(images).last_hidden_state
    at.disable()
    assert y.shape == model(images).last_hidden_state.shape and not torch.allclose(y, model(images).last_hidden_state, atol=1e-4)


def test_refusals() -> None:
    model = tiny("swin")
    with pytest.raises(NoSuchSite, match="no block"):
        thrifty.attach(model, thrifty.VPT(where="head"))
    eager = tiny("swin")
    eager.set_attn_implementation("eager")
    with pytest.raises(Unfit, match="sdpa"):
        thrifty.attach(eager, thrifty.VPT())
    at = thrifty.attach(model, make("vpt-shallow"))
    at.disable(lambda row: row.edit == "window-start")
    with pytest.raises(DeadEdit, match="together"):
        run(model)


@pytest.mark.timm
def test_timm() -> None:
    timm = pytest.importorskip("timm")
    sizes = {"depths": (2, 2), "embed_dim": 8, "num_heads": (2, 2), "img_size": 32, "window_size": 4, "num_classes": 3}
    with pytest.raises(Unfit, match="set_fused_attn"):
        thrifty.attach(timm.create_model("swin_tiny_patch4_window7_224", **sizes), thrifty.VPT())
    timm.layers.set_fused_attn(True, experimental=True)
    try:
        model = timm.create_model("swin_tiny_patch4_window7_224", **sizes).double().eval()
        timm.layers.set_fused_attn(True)
        images = F.interpolate(IMAGES, 32)
        base = model(images)
        at = thrifty.attach(model, thrifty.VPT(length=3, deep=False))
        shake(at)
        y = model(images)
        assert y.shape == base.shape and not torch.allclose(y, base)
        torch.testing.assert_close(torch.cat([model(image[None]) for image in images]), y)
        start = starts(at)[0]
        start.prompt = torch.nn.Parameter(start.prompt[:0].detach())
        torch.testing.assert_close(model(images), base)
    finally:
        timm.layers.set_fused_attn(True)

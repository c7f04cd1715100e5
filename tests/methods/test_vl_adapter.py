"""VL-Adapter: published counts on VL-BART, its equation, tasks, and the model that reads pictures."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from backbones import IDS, MASK, count, run, shake, tiny
from torch import Tensor

import thrifty
from thrifty.core.errors import NoSuchSetting, NoSuchSite, Unfit
from thrifty.methods import make
from thrifty.models import VisionLanguage
from thrifty.models.vision_language import pool_grid

PICTURES = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(3))


def vl_bart() -> VisionLanguage:
    """VL-BART as published, without numbers."""
    config = hf.BartConfig(d_model=768, encoder_layers=6, decoder_layers=6, encoder_attention_heads=12, decoder_attention_heads=12,
                           encoder_ffn_dim=3072, decoder_ffn_dim=3072, attn_implementation="eager")
    with torch.device("meta"):
        return VisionLanguage(hf.BartForConditionalGeneration(config))


def seeing(kind: str = "bart") -> VisionLanguage:
    torch.manual_seed(1)
    return VisionLanguage(tiny(kind), features=6).double().eval()


def see(model: Any, pictures: Tensor = PICTURES, **more: Any) -> Tensor:
    return model(IDS, MASK, image_features=pictures.double(), decoder_input_ids=IDS[:, :3], **more).logits


def part(at: Any, name: str) -> int:
    return sum(p.numel() for n, p in at.named_parameters() if name in n)


def test_counts() -> None:
    model = vl_bart()
    at = thrifty.attach(model, thrifty.VLAdapter(), check=False)
    assert part(at, "visual_embedding") == 1_582_848
    assert len(at.edits) == 30 and part(at, "edit:") == 30 * 148_320 == 4_449_600
    assert count(at) == 4_449_600 + 49_152 + 1_582_848 == 6_081_600
    assert f"{count(at) / sum(p.numel() for p in model.parameters()):.2%}" == "4.18%"
    model = vl_bart()
    at = thrifty.attach(model, make("vl-compacter"), check=False)
    assert part(at, "edit:") == 30 * 74_608 and count(at) == 3_870_240
    assert f"{count(at) / sum(p.numel() for p in model.parameters()):.2%}" == "2.70%"


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_a_layer_by_hand(kind: str) -> None:
    """The adapter stands before dropout, residual and normalisation: of a whole layer in training, dropout and all."""
    model = tiny(kind).double()
    at = thrifty.attach(model, thrifty.VLAdapter(reduction=4))
    encoder: Any = model.get_encoder()
    layer = encoder.layers[1] if kind == "bart" else encoder.block[1]
    found: dict[str, Any] = {row.role: at.edits[row.key] for row in at.plan if row.depth == 1 and "encoder." in row.path}
    x = torch.randn(2, 4, 16, dtype=torch.float64)

    def adapt(role: str, h: Tensor) -> Tensor:
        edit = found[role]
        return h + F.linear(F.gelu(F.linear(h, edit.down.weight, edit.down.bias), approximate="tanh"), edit.up.weight, edit.up.bias)

    y = layer(x, None)
    y = y if isinstance(y, Tensor) else y[0]
    at.disable(lambda row: row.edit == "vl-bottleneck")
    if kind == "bart":
        a = layer.self_attn_layer_norm(x + adapt("after.attn", layer.self_attn(x)[0]))
        wanted = layer.final_layer_norm(a + adapt("after.mlp", layer.fc2(F.gelu(layer.fc1(a)))))
    else:
        first, second = layer.layer
        a = x + adapt("after.attn", first.SelfAttention(first.layer_norm(x))[0])
        wanted = a + adapt("after.mlp", second.DenseReluDense(second.layer_norm(a)))
    torch.testing.assert_close(y, wanted)


def test_zero_up_is_the_base() -> None:
    model = seeing()
    base = see(model)
    at = thrifty.attach(model, thrifty.VLAdapter(reduction=4))
    assert not torch.allclose(see(model), base)
    with torch.no_grad():
        for edit in at.edits.values():
            edit.up.weight.zero_(), edit.up.bias.zero_()
    assert torch.equal(see(model), base)


@pytest.mark.parametrize("sharing", ["multiple", "half-down", "half-up"])
def test_tasks(sharing: str) -> None:
    model = tiny("bart").double()
    at = thrifty.attach(model, thrifty.VLAdapter(reduction=4, sharing=sharing), tasks=["vqa", "caption"])
    shake(at)
    one = 16 * 4 + 4, 4 * 16 + 16  # numbers of a D and of a U
    times = {"multiple": (2, 2), "half-down": (1, 2), "half-up": (2, 1)}[sharing]
    assert part(at, "edit:") == len(at.edits) * sum(n * t for n, t in zip(one, times, strict=True))
    alone = []
    for name in ("vqa", "caption"):
        with thrifty.task(model, name):
            alone.append(run(model))
    with thrifty.task(model, ["caption", "vqa"]):
        torch.testing.assert_close(run(model), torch.stack([alone[1][0], alone[0][1]]))
    assert not torch.allclose(alone[0], alone[1])


def test_one_adapter_knows_no_task() -> None:
    model = tiny("bart")
    thrifty.attach(model, thrifty.VLAdapter(reduction=4), tasks=["vqa", "caption"])
    with thrifty.task(model, "vqa"):
        y = run(model)
    with thrifty.task(model, "caption"):
        assert torch.equal(run(model), y)


def test_kronecker_of_one_is_a_scalar_times_a_matrix() -> None:
    model = tiny("bart").double()
    at = thrifty.attach(model, thrifty.VLAdapter(reduction=4, n=1))
    shake(at)
    edit: Any = next(iter(at.edits.values()))
    h = torch.randn(3, 16, dtype=torch.float64)
    down, up = ((layer.A[0, 0, 0] * layer.B[0], layer.b) for layer in (edit.down, edit.up))
    torch.testing.assert_close(edit.branch(h), F.gelu(h @ down[0] + down[1], approximate="tanh") @ up[0] + up[1])


def test_gradients_reach_the_first_visual_norm() -> None:
    model = seeing()
    at = thrifty.attach(model, thrifty.VLAdapter(reduction=4))
    see(model).square().mean().backward()
    assert model.visual_embedding.feature_norm.weight.grad is not None and model.visual_embedding.order.weight.grad is not None
    trains = {id(p) for p in at.parameters()}
    assert all(p.grad is None for p in model.parameters() if id(p) not in trains)


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_the_model_reads_text_and_pictures(kind: str) -> None:
    model = seeing(kind)
    language: Any = model.language
    text = model(IDS, MASK, decoder_input_ids=IDS[:, :3]).logits
    assert torch.equal(text, language(input_ids=IDS, attention_mask=MASK, decoder_input_ids=IDS[:, :3]).logits)
    both = see(model)
    assert not torch.allclose(both, text)
    own = model.visual_embedding
    shown = PICTURES.double()
    words = language.get_input_embeddings().weight
    objects = torch.stack([words[-1], words[-2], words[-3], words[-4]])
    expected = own.feature_norm(shown @ own.feature.weight.T + own.feature.bias) + own.position_norm(own.position.bias)
    expected = expected + own.order.weight[0] + objects
    torch.testing.assert_close(own(shown[:, None], words), expected)
    if kind == "bart":  # behind the text stand the pictures, at no position
        heard: list[Tensor] = []
        handle = language.model.encoder.layernorm_embedding.register_forward_pre_hook(lambda m, a: heard.append(a[0]))
        see(model)
        handle.remove()
        torch.testing.assert_close(heard[0][:, 5:], expected)
    written = model.generate(IDS, MASK, image_features=shown, max_new_tokens=4, num_beams=2)
    assert len(written) == 2


def test_two_pictures_and_boxes() -> None:
    model = seeing()
    own, words = model.visual_embedding, model.language.get_input_embeddings().weight
    two = torch.randn(1, 2, 4, 6, dtype=torch.float64)
    boxes = torch.rand(1, 2, 4, 4, dtype=torch.float64)
    made = own(two, words, boxes)
    assert made.shape == (1, 8, 16)
    one = own(two[:, 1:], words, boxes[:, 1:])
    torch.testing.assert_close(made[:, 4:] - own.order.weight[1], one - own.order.weight[0])
    place = torch.cat([boxes, ((boxes[..., 1] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 2]))[..., None]], -1)
    moved = own.position_norm(own.position(place)) - own.position_norm(own.position(torch.zeros_like(place)))
    torch.testing.assert_close(made - own(two, words), moved.flatten(1, 2))
    grid = torch.arange(49.0).view(1, 1, 7, 7)
    pooled = pool_grid(grid)  # 36 windows of 2 × 2, moved by one
    assert torch.equal(pooled[0, :, 0].view(6, 6), grid[0, 0, 1:, 1:])


def test_saved(tmp_path: Path) -> None:
    model = seeing()
    at = thrifty.attach(model, thrifty.VLAdapter(reduction=4))
    shake(at, 0.1)
    at.save(tmp_path)
    fresh = seeing()
    thrifty.load(fresh, tmp_path)
    assert torch.equal(see(fresh), see(model))


def test_refusals() -> None:
    for setting, value in (("reduction", 0), ("sharing", "none"), ("n", -1)):
        with pytest.raises(NoSuchSetting, match=setting):
            thrifty.attach(tiny("bart"), thrifty.VLAdapter(**{setting: value}))
    with pytest.raises(NoSuchSetting, match="single"):
        thrifty.attach(tiny("bart"), thrifty.VLAdapter(n=2, sharing="multiple"))
    with pytest.raises(NoSuchSetting, match="tasks="):
        thrifty.attach(tiny("bart"), thrifty.VLAdapter(sharing="multiple"))
    with pytest.raises(NoSuchSetting, match="does not divide"):
        thrifty.attach(tiny("bart"), thrifty.VLAdapter(n=3))
    with pytest.raises(NoSuchSite):
        thrifty.attach(tiny("resnet"), thrifty.VLAdapter())
    with pytest.raises(Unfit, match="no encoder-decoder"):
        VisionLanguage(tiny("llama"))
    with pytest.raises(Unfit, match="6 features, not with 1 and 5"):
        see(seeing(), PICTURES[..., :5])

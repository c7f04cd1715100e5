"""IP-Adapter: reference arrays, published counts, its invariants on a U-Net of diffusers, training and drawing."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import count, golden, shake, tiny
from torch import Tensor, nn

import thrifty
from thrifty.core.errors import BadData, DeadEdit, Missing, NoSuchSetting, Unfit
from thrifty.methods import make
from thrifty.methods.ip_adapter import Every, ImageAttention, ImageTokens, Single, set_scale
from thrifty.methods.prompts.perceiver import Resampler
from thrifty.models import diffusion
from thrifty.testing import PROMISES, contract
from thrifty.testing.tiny import Tiny


class Cross(nn.Module):
    """Cross-attention as diffusers writes it."""

    def __init__(self, width: int, text: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = nn.Linear(width, width, bias=False), *(nn.Linear(text, width, bias=False) for _ in "kv")
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.to_q(x), self.to_k(text), self.to_v(text)))
        out: Tensor = self.to_out[0](F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return out


class Net(nn.Module):
    """One cross-attention, called as a U-Net is."""

    def __init__(self, width: int = 12, text: int = 10, heads: int = 3):
        super().__init__()
        self.attn2 = Cross(width, text, heads)

    def forward(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, added_cond_kwargs: Any = None,
                mask: Tensor | None = None) -> Tensor:
        y: Tensor = self.attn2(sample, encoder_hidden_states, mask)
        return y


def batch(features: int = 6, tokens: int = 0, rows: int = 2) -> dict[str, Any]:
    drawn = torch.Generator().manual_seed(1)
    image = torch.randn(rows, *([tokens] if tokens else []), features, generator=drawn)
    return {"sample": torch.randn(rows, 7, 12, generator=drawn), "timestep": torch.tensor([3, 5])[:rows],
            "encoder_hidden_states": torch.randn(rows, 5, 10, generator=drawn), "added_cond_kwargs": {"image_embeds": image}}


def net(**settings: Any) -> tuple[Net, Any, dict[str, Any]]:
    torch.manual_seed(0)
    model, given = Net().eval(), batch()
    at = thrifty.attach(model, thrifty.IPAdapter(**{"features": 6, **settings}), example=given)
    return model, at, given


def image_attention(at: Any) -> Any:
    return next(e for e in at.edits.values() if isinstance(e, ImageAttention))


def test_reference_arrays() -> None:
    g = golden("vlm_ip_adapter")
    model = Net(12, 10, g["hp/heads"])
    with torch.no_grad():
        for name in ("to_q", "to_k", "to_v"):
            getattr(model.attn2, name).weight.copy_(g[f"w/{name}"])
        model.attn2.to_out[0].weight.copy_(g["w/to_out_weight"]), model.attn2.to_out[0].bias.copy_(g["w/to_out_bias"])
    given = {"sample": g["in/hidden"], "timestep": 0, "encoder_hidden_states": g["in/text_states"],
             "added_cond_kwargs": {"image_embeds": g["in/image_embedding"]}}
    torch.testing.assert_close(model(**given), g["out/text_only"], atol=1e-5, rtol=0)
    at = thrifty.attach(model, thrifty.IPAdapter(tokens=g["hp/num_tokens"], features=6, scale=g["hp/scale"]), example=given)
    root, edit = next(e for e in at.edits.values() if isinstance(e, ImageTokens)), image_attention(at)
    assert torch.equal(edit.to_k.weight, g["w/to_k"]) and torch.equal(edit.to_v.weight, g["w/to_v"])
    with torch.no_grad():
        edit.to_k.weight.copy_(g["w/to_k_ip"]), edit.to_v.weight.copy_(g["w/to_v_ip"])
        root.project.project.weight.copy_(g["w/image_proj_weight"]), root.project.project.bias.copy_(g["w/image_proj_bias"])
        root.project.norm.weight.copy_(g["w/image_proj_ln_weight"]), root.project.norm.bias.copy_(g["w/image_proj_ln_bias"])
    torch.testing.assert_close(root.project(g["in/image_embedding"]), g["out/projected_image_tokens"], atol=1e-5, rtol=0)
    root.project.forward = lambda e: g["in/image_tokens"]
    y = model(**given)
    torch.testing.assert_close(y, g["out/with_image"], atol=1e-5, rtol=0)
    (y * g["in/probe"]).sum().backward()
    for name in ("to_k", "to_v"):
        torch.testing.assert_close(getattr(edit, name).weight.grad, g[f"grad/{name}_ip"], atol=1e-5, rtol=0)
    assert model.attn2.to_k.weight.grad is None


def test_reference_arrays_of_the_full_projection() -> None:
    g = golden("vlm_ip_adapter")
    made = Every(6, 10)
    made.load_state_dict({f"{ours}.{n}": g[f"w/mlp_proj_{theirs}_{n}"] for ours, theirs in
                          (("first", "0"), ("second", "2"), ("norm", "ln")) for n in ("weight", "bias")})
    torch.testing.assert_close(made(g["in/image_embedding"]), g["out/mlp_projected_image_tokens"], atol=1e-5, rtol=0)


def test_counts_of_stable_diffusion() -> None:
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        given = {"sample": torch.zeros(1, 4, 64, 64), "timestep": torch.zeros(1), "encoder_hidden_states": torch.zeros(1, 77, 768),
                 "added_cond_kwargs": {"image_embeds": torch.zeros(1, 1024)}}
    at = thrifty.attach(unet, thrifty.IPAdapter(), example=given)
    widths = [at.edits[row.key].to_k.out_features for row in at.plan if row.edit == "image-attention"]
    assert sorted(widths) == [320] * 5 + [640] * 5 + [1280] * 6
    parts = {kind: sum(p.numel() for n, p in at.named_parameters() if f"#{kind}:" in n)
             for kind in ("image-attention", "image-prompt")}
    assert parts == {"image-attention": 2 * 768 * sum(widths), "image-prompt": 3_150_336}
    assert parts["image-attention"] == 19_169_280 and count(at) == 22_319_616
    assert f"{count(at) / (sum(p.numel() for p in unet.parameters()) - count(at)):.1%}" == "2.6%"


def test_scales_and_values_of_zero_are_the_base() -> None:
    model, at, given = net()
    with at.disabled():
        base = model(**given)
    shake(at)
    assert not torch.allclose(model(**given), base)
    set_scale(at, 0.0)
    torch.testing.assert_close(model(**given), base)
    assert all(row.numbers["scale"] == 0.0 for row in at.plan if row.edit == "image-attention")
    set_scale(at, 1.0)
    with torch.no_grad():
        image_attention(at).to_v.weight.zero_()
    torch.testing.assert_close(model(**given), base)


def test_tokens_of_the_text_count_twice() -> None:
    model, at, given = net(scale=0.4)
    root = next(e for e in at.edits.values() if isinstance(e, ImageTokens))
    root.project.forward = lambda e: given["encoder_hidden_states"]
    with at.disabled():
        text = model(**given)
    bias = model.attn2.to_out[0].bias
    torch.testing.assert_close(model(**given) - bias, 1.4 * (text - bias))


def test_order_number_and_mask() -> None:
    model, at, given = net()
    shake(at)
    root = next(e for e in at.edits.values() if isinstance(e, ImageTokens))
    tokens = root.project(given["added_cond_kwargs"]["image_embeds"]).detach()
    y = model(**given)
    for same in (tokens[:, [2, 0, 3, 1]], torch.cat([tokens, tokens], 1)):
        root.project.forward = lambda e, same=same: same
        torch.testing.assert_close(model(**given), y)
    # masking the text leaves what the image adds
    root.project.forward = lambda e: tokens
    mask = torch.tensor([True, True, False, False, False]).expand(1, 1, 7, 5)
    with at.disabled():
        plain, masked = model(**given), model(**given, mask=mask)
    assert not torch.allclose(plain, masked)
    torch.testing.assert_close(model(**given, mask=mask) - masked, y - plain)


def test_tokens_by_hand() -> None:
    torch.manual_seed(0)
    single, e = Single(6, 4, 10).double(), torch.randn(2, 6, dtype=torch.float64)
    made = (e @ single.project.weight.T + single.project.bias).view(2, 4, 10)
    torch.testing.assert_close(single(e), F.layer_norm(made, (10,)))
    reads, x = Resampler(6, 8, 3, depth=1, heads=2, dim=5, ratio=2).double(), torch.randn(2, 7, 6, dtype=torch.float64)
    layer, z = reads.layers[0], reads.latents.expand(2, 3, 8)
    own, both = F.layer_norm(z, (8,)), torch.cat([F.layer_norm(reads.first(x), (8,)), F.layer_norm(z, (8,))], 1)
    q, kv = own @ layer.q.weight.T, both @ layer.kv.weight.T
    heads = [(q[..., s] @ kv[..., s].transpose(1, 2) / 5**0.5).softmax(-1) @ kv[..., 10:][..., s]
             for s in (slice(0, 5), slice(5, 10))]
    z = z + torch.cat(heads, -1) @ layer.o.weight.T
    z = z + F.gelu(F.layer_norm(z, (8,)) @ layer.wide.weight.T) @ layer.back.weight.T
    torch.testing.assert_close(reads(x), F.layer_norm(reads.last(z), (8,)))


@pytest.mark.parametrize(("kind", "expected"), [("plus", 16), ("full", 5)])
def test_the_other_kinds(kind: str, expected: int) -> None:
    torch.manual_seed(0)
    model, given = Net().eval(), batch(tokens=5)
    at = thrifty.attach(model, make(f"ip-adapter-{kind}", features=6), example=given)
    root = next(e for e in at.edits.values() if isinstance(e, ImageTokens))
    assert root.project(given["added_cond_kwargs"]["image_embeds"]).shape == (2, expected, 10)
    y = model(**given)
    with at.disabled():
        assert not torch.allclose(model(**given), y)


def unet() -> tuple[Any, dict[str, Any]]:
    pytest.importorskip("diffusers")
    drawn = torch.Generator().manual_seed(1)
    given = {"sample": torch.randn(2, 3, 16, 16, generator=drawn), "timestep": torch.tensor([3, 500]),
             "encoder_hidden_states": torch.randn(2, 5, 32, generator=drawn),
             "added_cond_kwargs": {"image_embeds": torch.randn(2, 6, generator=drawn)}}
    return diffusion.small_unet().eval(), given


@pytest.mark.parametrize("promise", [p for p in PROMISES if p is not contract.routes_rows and p is not contract.compiles],
                         ids=lambda p: p.__name__)
def test_promises_on_a_u_net(promise: contract.Promise) -> None:
    model, given = unet()
    promise(thrifty.IPAdapter(features=6), Tiny("unet", model, given))


def test_only_what_is_listed_trains_on_a_u_net(tmp_path: Path) -> None:
    model, given = unet()
    at = thrifty.attach(model, thrifty.IPAdapter(features=6), example=given)
    assert {row.path.rpartition(".")[2] for row in at.plan} == {"", "attn2"} and len(at.plan) == 1 + 4
    text, image = given["encoder_hidden_states"], given["added_cond_kwargs"]["image_embeds"]
    drawn = torch.Generator().manual_seed(0)
    diffusion.noise_loss(model, given["sample"], text, image, drawn).backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    assert trained == {n for n, _ in model.named_parameters() if "edits" in n.split(".")}
    shake(at, 0.1)
    at.save(tmp_path)
    fresh, _ = unet()
    thrifty.load(fresh, tmp_path)
    assert torch.equal(fresh(**given).sample, model(**given).sample)


def test_trained_it_draws_what_it_is_shown() -> None:
    """Two images, two pictures, one text: after training on noise, each image draws its own picture."""
    model, given = unet()
    at = thrifty.attach(model, thrifty.IPAdapter(features=6), example=given)
    text = given["encoder_hidden_states"][:1].expand(2, -1, -1)
    image = given["added_cond_kwargs"]["image_embeds"]
    pictures = torch.stack([torch.ones(3, 16, 16), -torch.ones(3, 16, 16)])
    drawn = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(at.parameters(), lr=5e-3)

    def loss() -> float:
        held = torch.Generator().manual_seed(5)
        with torch.no_grad():
            return sum(float(diffusion.noise_loss(model, pictures, text, image, held)) for _ in range(8))

    before = loss()
    for _ in range(25):
        optimiser.zero_grad()
        diffusion.noise_loss(model, pictures.repeat(4, 1, 1, 1), text.repeat(4, 1, 1), image.repeat(4, 1), drawn).backward()
        optimiser.step()
    assert loss() < before
    noise = torch.randn(1, 3, 16, 16, generator=drawn).expand(2, -1, -1, -1)
    empty = torch.zeros_like(text)
    made = diffusion.draw(model, noise, text, image, empty=empty, steps=5, guidance=1.0)
    assert made.shape == pictures.shape and not torch.allclose(made[0], made[1], atol=1e-3)
    again = diffusion.draw(model, noise, text, image, empty=text, nothing=image, steps=5, guidance=7.5)
    torch.testing.assert_close(again, made, atol=1e-3, rtol=1e-3)  # with equal answers the guidance does not count


def test_steps_and_drops() -> None:
    left = diffusion.kept()
    assert left.shape == (1000,) and bool((left[1:] < left[:-1]).all())
    assert left[0] == pytest.approx(1 - 0.00085) and left[-1] == pytest.approx(0.0047, abs=2e-4)
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(diffusion.guide(a, a, 7.5), a)
    torch.testing.assert_close(diffusion.guide(a, b, 2.0), 2 * b - a)
    rows = 20_000
    text, image, empty = torch.ones(rows, 1, 2), torch.ones(rows, 3), torch.zeros(1, 2)
    told, shown = diffusion.drop(text, image, empty, torch.Generator().manual_seed(0))
    no_text, no_image = told.sum((1, 2)) == 0, shown.sum(1) == 0
    for share in (no_text & ~no_image, no_image & ~no_text, no_text & no_image):
        assert float(share.float().mean()) == pytest.approx(0.05, abs=0.006)
    clean, noise = torch.randn(2, 1, 3, 4, 4)

    class Knows(nn.Module):
        """Answers with the noise that leads from x to one picture."""

        def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor) -> Any:
            kept = left[t].view(-1, 1, 1, 1)
            return type("Answer", (), {"sample": (x - kept.sqrt() * clean) / (1 - kept).sqrt()})

    torch.testing.assert_close(diffusion.draw(Knows(), noise, empty[None], empty=empty[None], steps=7), clean, atol=1e-4, rtol=1e-4)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting, value in (("kind", "half"), ("tokens", 0), ("features", 0)):
        with pytest.raises(NoSuchSetting, match=setting):
            thrifty.attach(Net(), thrifty.IPAdapter(**{setting: value}), example=batch())
    for kind in ("t5", "llama", "vit"):
        with pytest.raises(Unfit, match="does not draw pictures"):
            thrifty.attach(tiny(kind), thrifty.IPAdapter())
    with pytest.raises(Unfit, match="example="):
        thrifty.attach(Net(), thrifty.IPAdapter())
    model, at, given = net()
    without = {**given, "added_cond_kwargs": None}
    with pytest.raises(DeadEdit, match="without an image"):
        model(**without)
    with at.disabled():
        model(**without)
    with pytest.raises(Unfit, match=r"\[batch, 6\].*not \[2, 5\]"):
        model(**{**given, "added_cond_kwargs": {"image_embeds": torch.zeros(2, 5)}})
    at.disable(lambda row: row.edit == "image-prompt")
    at.context.taps.clear()
    with pytest.raises(DeadEdit, match="both on or off"):
        model(**given)
    lora = thrifty.attach(tiny("bert"), thrifty.LoRA(rank=2))
    with pytest.raises(Unfit, match="no image attention"):
        set_scale(lora, 0.5)
    with pytest.raises(BadData, match="1 to 1000"):
        diffusion.draw(model, torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 2), empty=torch.zeros(1, 1, 2), steps=0)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(Missing, match=r"thrifty\[diffusion\]"):
        diffusion.small_unet()

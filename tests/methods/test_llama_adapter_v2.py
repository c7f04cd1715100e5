"""LLaMA-Adapter V2: published counts, scales and biases, two groups that share nothing, pictures in the lowest layers."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import count, published, run, shake, tiny
from torch import Tensor

import thrifty
from thrifty.core.errors import CannotMerge, NoSuchSetting, Unfit
from thrifty.methods import make
from thrifty.methods.llama_adapter import GatedPrompt
from thrifty.methods.llama_adapter_v2 import ScaledBias, groups, only
from thrifty.methods.prompts.sight import Block, Queried

META = {"input_ids": torch.ones(1, 4, dtype=torch.long, device="meta")}
PICTURES = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(3))
ASKING: dict[str, Any] = {"length": 3, "features": 6, "width": 16, "depth": 1}
SMALL: dict[str, Any] = {**ASKING, "layers": 1, "early": 1}


def sizes(at: thrifty.Attachment, *names: str) -> int:
    return sum(p.numel() for n, p in at.named_parameters() if n.startswith(names) or any(name in n for name in names))


def test_counts_of_the_released_model() -> None:
    at = thrifty.attach(published("llama-7b"), make("llama-adapter-v2-7b", phase="finetune"), example=META)
    assert (sizes(at, "base:"), count(at)) == (266_240, 266_240 + 1_097_728)
    at = thrifty.attach(published("llama-7b"), make("llama-adapter-v2-7b", phase="pretrain"), example=META)
    assert sizes(at, "#sight-queries") == 60_460_800
    assert sizes(at, ":prompt") == 31 * 10 * 4096 and sizes(at, ":gate") == 31 * 32
    assert count(at) == 61_731_584 - 32  # theirs counts the gates of the lowest layer, which nothing reads


def test_counts_of_scales_and_biases() -> None:
    at = thrifty.attach(published("llama-7b"), make("llama-adapter-v2-65b"), example=META)
    assert (sizes(at, "#scale:"), sizes(at, "#scale-of-bias:")) == (1_138_688, 1_359_872)
    at = thrifty.attach(published("llama-7b"), thrifty.LLaMAAdapterV2(), example=META)
    assert sizes(at, "#scale-of-bias:") == 2 * 1_359_872
    assert count(at) == 2 * 1_359_872 + 266_240 + 1_229_760


@pytest.mark.parametrize("linear", ["output", "input", "released"])
def test_a_linear_layer_by_hand(linear: str) -> None:
    model = tiny("llama").double()
    at = thrifty.attach(model, thrifty.LLaMAAdapterV2(length=3, linear=linear))
    base = run(model)
    layer = model.model.layers[0].mlp.down_proj
    shake(at)
    assert not torch.allclose(run(model), base)
    x = torch.randn(2, 4, 32, dtype=torch.float64)
    bias = next(e for e in at.edits.values() if e.site.module is layer and isinstance(e, ScaledBias))
    others = [e for e in at.edits.values() if e.site.module is layer and e is not bias]
    scale = bias.s if linear == "output" else others[0].l if others else None
    if linear == "output":
        wanted = scale * (x @ layer.weight.T + bias.b)
    else:
        wanted = (x if scale is None else x * scale) @ layer.weight.T + bias.b
    torch.testing.assert_close(layer(x), wanted)
    adapted = {row.path.rpartition(".")[2] for row in at.plan if row.edit == "scale-of-bias"}
    every = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert adapted == (every - {"k_proj", "v_proj"} if linear == "released" else every)


@pytest.mark.parametrize("linear", ["output", "input"])
def test_prompts_pass_through_the_tuned_projections(linear: str) -> None:
    model = tiny("llama").double()
    at = thrifty.attach(model, thrifty.LLaMAAdapterV2(length=3, linear=linear))
    shake(at)
    edit = next(e for e in at.edits.values() if isinstance(e, GatedPrompt))
    attention = edit.site.module
    torch.testing.assert_close(edit._through(edit.k, edit.prompt), attention.k_proj(edit.prompt))
    torch.testing.assert_close(edit._through(edit.v, edit.prompt), attention.v_proj(edit.prompt))
    other = thrifty.attach(model, thrifty.LoRA(rank=2), name="other")
    before = edit._through(edit.k, edit.prompt)
    shake(other)
    assert torch.equal(edit._through(edit.k, edit.prompt), before)  # what others put there is theirs


@pytest.mark.parametrize("fusion", ["early", "queries"])
def test_starts_as_the_base_whatever_the_picture(fusion: str) -> None:
    model = tiny("llama")
    base = run(model)
    thrifty.attach(model, thrifty.LLaMAAdapterV2(**{**SMALL, "fusion": fusion}))
    assert torch.equal(run(model), base) and torch.equal(run(model, image_features=PICTURES), base)


def test_pictures_enter_below_and_prompts_above() -> None:
    model = tiny("llama", num_hidden_layers=4).double()
    at = thrifty.attach(model, thrifty.LLaMAAdapterV2(length=3, early=1, features=6))
    found = {row.depth: row.numbers for row in at.plan if row.edit == "gated-prompt"}
    assert {d: (n["length"], n["sees"]) for d, n in found.items()} == {0: (0, True), 1: (3, False), 2: (3, False), 3: (3, False)}
    shake(at)
    shown = PICTURES.double()
    text, both = run(model), run(model, image_features=shown)
    other = run(model, image_features=torch.stack([shown[0], -shown[1]]))
    torch.testing.assert_close(other[0], both[0])  # each row has its own picture
    assert not torch.allclose(other[1], both[1]) and not torch.allclose(text, both)
    torch.testing.assert_close(run(model, image_features=shown[:, [3, 1, 0, 4, 2]]), both)  # no order among tokens
    low = next(e for e in at.edits.values() if isinstance(e, GatedPrompt) and e.sees)
    with torch.no_grad():
        low.gate.zero_()
    assert torch.equal(run(model, image_features=shown), run(model))


def test_queries_by_hand() -> None:
    torch.manual_seed(0)
    model = tiny("llama")
    edit = Queried(thrifty.sites(model, "model")[0], 6, 16, 3, inner=8, depth=2, heads=2, ratio=4).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    t = torch.cat([edit.queries.expand(2, 3, 8), F.layer_norm(edit.reduce(x), (8,))], 1)
    for block in edit.blocks:
        t = by_hand(block, t)
    torch.testing.assert_close(edit.look(x), F.layer_norm(edit.project(t[:, :3]), (16,)))


def by_hand(block: Block, x: Tensor) -> Tensor:
    q, k, v = block.qkv(F.layer_norm(x, (8,))).chunk(3, -1)
    heads = [(q[..., s] @ k[..., s].transpose(1, 2) / 2).softmax(-1) @ v[..., s] for s in (slice(0, 4), slice(4, 8))]
    x = x + block.proj(torch.cat(heads, -1))
    return x + block.back(F.gelu(block.wide(F.layer_norm(x, (8,)))))


def test_two_groups_share_nothing() -> None:
    model = tiny("llama")
    at = thrifty.attach(model, thrifty.LLaMAAdapterV2(**SMALL))
    shake(at)
    apart = {name: {id(p) for p in held} for name, held in groups(at).items()}
    assert not apart["picture"] & apart["instruction"] and len(apart["picture"] | apart["instruction"]) == len(at.parameters())
    for group, more in (("picture", {"image_features": PICTURES}), ("instruction", {})):
        with only(at, group):
            loss = run(model, **more).square().mean()
        assert all(p.requires_grad for p in at.parameters())
        loss.backward()
        assert {id(p) for p in at.parameters() if p.grad is not None} == apart[group]
        model.zero_grad()


@pytest.mark.parametrize("fusion", ["early", "queries"])
def test_phases_share_nothing_and_are_the_joint_model_together(fusion: str) -> None:
    names, total = [], 0
    for phase in ("pretrain", "finetune", "joint"):
        at = thrifty.attach(tiny("llama"), thrifty.LLaMAAdapterV2(**{**SMALL, "fusion": fusion, "phase": phase}))
        names.append({n for n, _ in at.named_parameters()})
        total = count(at)
        if phase == "pretrain":
            first = count(at)
        elif phase == "finetune":
            second = count(at)
    one, two, both = names
    assert total == first + second and len(both) == len(one) + len(two)
    assert not {n for n in one if "gated-prompt" not in n} & {n for n in two if "gated-prompt" not in n}
    if fusion == "queries":
        assert not one & two


def test_one_phase_after_the_other() -> None:
    model = tiny("llama")
    first = thrifty.attach(model, make("llama-adapter-v2-7b", **ASKING, phase="pretrain"), name="seen")
    shake(first)
    y, kept = run(model, image_features=PICTURES), first.state()
    second = thrifty.attach(model, make("llama-adapter-v2-7b", phase="finetune", length=3), name="told")
    assert torch.equal(run(model, image_features=PICTURES), y)
    for p in first.parameters():
        p.requires_grad_(False)
    optimiser = torch.optim.AdamW(second.parameters(), lr=0.1)
    run(model, image_features=PICTURES).square().mean().backward()
    optimiser.step()
    assert all(torch.equal(kept[n], t) for n, t in first.state().items())
    assert not torch.allclose(run(model, image_features=PICTURES), y)


def test_biases_merge_where_there_are_some() -> None:
    model = tiny("bert")
    at = thrifty.attach(model, make("llama-adapter-v2-7b", phase="finetune"))
    shake(at, 0.1)
    y = run(model)
    at.merge()
    torch.testing.assert_close(run(model), y, atol=1e-5, rtol=1e-5)
    model = tiny("llama")
    at = thrifty.attach(model, make("llama-adapter-v2-7b", phase="finetune"))
    with pytest.raises(CannotMerge, match="no bias that could hold"):
        at.merge()


def test_saved(tmp_path: Path) -> None:
    model = tiny("llama")
    at = thrifty.attach(model, make("llama-adapter-v2-7b", **ASKING))
    shake(at)
    at.save(tmp_path)
    fresh = tiny("llama")
    thrifty.load(fresh, tmp_path)
    assert torch.equal(run(fresh, image_features=PICTURES), run(model, image_features=PICTURES))


def test_refusals() -> None:
    for setting, value in (("layers", 0), ("early", 0), ("length", 0), ("features", -1), ("fusion", "late"), ("linear", "both"),
                           ("phase", "third"), ("width", 8), ("depth", 0)):
        with pytest.raises(NoSuchSetting, match=setting):
            thrifty.attach(tiny("llama"), thrifty.LLaMAAdapterV2(**{setting: value}))
    with pytest.raises(NoSuchSetting, match="pretrain"):
        thrifty.attach(tiny("llama"), thrifty.LLaMAAdapterV2(phase="pretrain"))
    with pytest.raises(Unfit, match="one layer for several projections"):
        thrifty.attach(tiny("gpt2"), thrifty.LLaMAAdapterV2(linear="input"))
    at = thrifty.attach(tiny("llama"), thrifty.LLaMAAdapterV2(length=3))
    with pytest.raises(Unfit, match="instruction alone"), only(at, "picture"):
        pass
    with pytest.raises(NoSuchSetting, match="'picture' or 'instruction'"), only(at, "pictures"):
        pass

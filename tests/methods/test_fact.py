"""FacT: reference arrays of a whole model, published counts, its two forms by hand, and exact merging."""
from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from backbones import count, frozen_stay, golden, published, run, shake, tiny
from torch import Tensor

import thrifty
from thrifty.core.errors import NoSuchSetting, NoSuchSite, Unfit
from thrifty.methods import make
from thrifty.testing import tiny as families

PLACES = {"attention.q_proj": "attn.q_FacTs", "attention.k_proj": "attn.k_FacTs", "attention.v_proj": "attn.v_FacTs",
          "attention.o_proj": "attn.proj_FacTs", "mlp.fc1": "mlp.fc1_FacTs", "mlp.fc2": "mlp.fc2_FacTs"}


def from_reference(g: dict[str, Any]) -> Any:
    """A transformers ViT with the weights of the reference arrays."""
    d = g["hp/width"]
    model = hf.ViTForImageClassification(hf.ViTConfig(
        hidden_size=d, num_hidden_layers=g["hp/layers"], num_attention_heads=g["hp/heads"], intermediate_size=4 * d, patch_size=8,
        image_size=24, num_labels=5, layer_norm_eps=1e-6)).eval()
    base = {k[5:]: v for k, v in g.items() if k.startswith("base/")}
    state = {"vit.embeddings.cls_token": base["cls_token"], "vit.embeddings.position_embeddings": base["pos_embed"]}
    names = {"vit.embeddings.patch_embeddings.projection": "patch_embed.proj", "vit.layernorm": "norm", "classifier": "head"}
    for i in range(g["hp/layers"]):
        ours, theirs = f"vit.layers.{i}", f"blocks.{i}"
        names |= {f"{ours}.layernorm_before": f"{theirs}.norm1", f"{ours}.layernorm_after": f"{theirs}.norm2",
                  f"{ours}.attention.o_proj": f"{theirs}.attn.proj", f"{ours}.mlp.fc1": f"{theirs}.mlp.fc1",
                  f"{ours}.mlp.fc2": f"{theirs}.mlp.fc2"}
        for kind in ("weight", "bias"):
            for n, rows in zip("qkv", base[f"{theirs}.attn.qkv.{kind}"].chunk(3), strict=True):
                state[f"{ours}.attention.{n}_proj.{kind}"] = rows
    state |= {f"{ours}.{k}": base[f"{theirs}.{k}"] for ours, theirs in names.items() for k in ("weight", "bias")}
    model.load_state_dict(state)
    return model


def test_reference_arrays() -> None:
    g = golden("vision_fact_tt")
    model = from_reference(g)
    torch.testing.assert_close(model(g["in/pixel_values"]).logits, g["out/base_logits"], atol=1e-5, rtol=1e-5)
    at = thrifty.attach(model, thrifty.FacT(rank=g["hp/rank"], scale=g["hp/scale"]))
    shared = at.context.shared
    names = {f"shared:{n}": f"FacT{n[0].lower()}.weight" for n, _ in shared.named_parameters()}
    for i in (0, 1):
        names |= {f"edit:vit.layers.{i}.{ours}#fact:S": f"blocks.{i}.{theirs}.weight" for ours, theirs in PLACES.items()}
    held = dict(at.named_parameters())
    assert set(held) == set(names) and {f"w/{n}" for n in names.values()} == {k for k in g if k.startswith("w/")}
    at.load_state({ours: g[f"w/{theirs}"] for ours, theirs in names.items()})
    logits = model(g["in/pixel_values"]).logits
    torch.testing.assert_close(logits, g["out/logits"], atol=1e-5, rtol=1e-5)
    (logits * g["in/probe"]).sum().backward()
    for ours, theirs in names.items():
        torch.testing.assert_close(held[ours].grad, g[f"grad/{theirs}"], atol=1e-5, rtol=1e-4)
    at.merge()
    torch.testing.assert_close(model(g["in/pixel_values"]).logits, g["out/logits"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("form", "rank", "wanted"), [
    ("tt", 4, 8_448), ("tt", 8, 21_504), ("tt", 16, 61_440), ("tk", 16, 30_976), ("tk", 32, 86_528)])
def test_counts(form: str, rank: int, wanted: int) -> None:
    at = thrifty.attach(published("vit-b16"), make(f"fact-{form}", rank=rank))
    assert count(at) == wanted
    assert sum(name.startswith("shared:") for name, _ in at.named_parameters()) == (2 if form == "tt" else 4)


def test_each_width_of_a_swin_has_factors_of_its_own() -> None:
    at = thrifty.attach(published("swin-b"), thrifty.FacT(rank=8))
    stages = list(zip((2, 2, 18, 2), (128, 256, 512, 1024), strict=True))
    assert count(at) == sum(2 * d * 8 + n * 12 * 64 for n, d in stages)
    at = thrifty.attach(published("swin-b"), make("fact-tk", rank=8))
    assert count(at) == sum(2 * d * 8 + n * 12 * 8 + 8**3 for n, d in stages)


@pytest.mark.parametrize("name", ["fact-tt", "fact-tk"])
def test_start(name: str) -> None:
    model = tiny("vit", intermediate_size=64)
    base = run(model)
    at = thrifty.attach(model, make(name, rank=4))
    torch.testing.assert_close(run(model), base, atol=0, rtol=0)
    shared = at.context.shared
    assert not shared.V["16"].any() and 0 < float(shared.U["16"].abs().max()) <= 1 / 4  # 1 / sqrt(16)
    assert (shared.P["16"].shape == (4, 24)) if name == "fact-tk" else not hasattr(shared, "P")


@pytest.mark.parametrize("layout", ["code", "paper"])
def test_tuckers_form_by_hand(layout: str) -> None:
    model = tiny("vit", intermediate_size=64).double()
    at = thrifty.attach(model, thrifty.FacT(form="tk", rank=3, scale=0.5, layout=layout))
    shake(at)
    shared, edits = at.context.shared, {k.partition("#")[0].removeprefix("vit.layers."): e for k, e in at.edits.items()}
    U, V, C, P = (getattr(shared, n)["16"] for n in "UVCP")
    mixed = torch.einsum("abt,tj->jab", C, P)  # the 24 slices, each acts on rows
    x, wide = torch.randn(2, 5, 16).double(), torch.randn(2, 5, 64).double()
    for i, place in enumerate(("1.attention.q_proj", "1.attention.k_proj", "1.attention.v_proj", "1.attention.o_proj")):
        torch.testing.assert_close(edits[place].branch(x), 0.5 * x @ U.T @ mixed[12 + i] @ V.T)
    first, second = mixed[16:20], mixed[20:24]
    if layout == "paper":
        up = torch.cat([x @ U.T @ s @ V.T for s in first], -1)
        down = sum(piece @ U.T @ s @ V.T for piece, s in zip(wide.chunk(4, -1), second, strict=True))
    else:  # the slice is the fastest axis of what is flattened
        one, two = (torch.stack([s.flatten() for s in side], -1).flatten().view(3, 12) for side in (first, second))
        up = torch.cat([piece @ V.T for piece in (x @ U.T @ one).chunk(4, -1)], -1)
        down = torch.cat([piece @ U.T for piece in wide.chunk(4, -1)], -1) @ two.T @ V.T
    torch.testing.assert_close(edits["1.mlp.fc1"].branch(x), 0.5 * up)
    torch.testing.assert_close(edits["1.mlp.fc2"].branch(wide), 0.5 * down)


def increments(at: thrifty.Attachment) -> Tensor:
    """All slices of all changes [slices, d, d]."""
    found = []
    for e in at.edits.values():
        delta = e.delta(e.site.weight).detach()
        found += [block for rows in delta.split(16, 0) for block in rows.split(16, 1)]
    return torch.stack(found)


def test_multilinear_rank() -> None:
    for layout in ("paper", "code"):
        at = thrifty.attach(tiny("vit", intermediate_size=64).double(), thrifty.FacT(form="tk", rank=3, layout=layout))
        shake(at)
        tensor = increments(at)
        assert tensor.shape == (24, 16, 16)
        ranks = [int(torch.linalg.matrix_rank(tensor.movedim(axis, 0).flatten(1), rtol=1e-9)) for axis in range(3)]
        assert ranks[1:] == [3, 3] and (ranks[0] == 3) == (layout == "paper")
        attention = tensor.view(2, 12, 16, 16)[:, :4].flatten(0, 1)
        assert int(torch.linalg.matrix_rank(attention.flatten(1), rtol=1e-9)) == 3


def test_a_slice_of_zeros_changes_one_matrix_alone() -> None:
    at = thrifty.attach(tiny("vit", intermediate_size=64).double(), thrifty.FacT(rank=3))
    shake(at)
    before = increments(at)
    e: Any = at.edits["vit.layers.0.mlp.fc1#fact"]
    with torch.no_grad():
        e.S.view(4, 3, 3)[2].zero_()
    changed = (increments(at) != before).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [6] and not increments(at)[6].any()


@pytest.mark.parametrize("name", ["fact-tt", "fact-tk"])
@pytest.mark.parametrize("kind", ["vit", "dinov2", "swin", "bert", "llama"])
def test_merges_exactly(kind: str, name: str, tmp_path: Any) -> None:
    model = tiny(kind)
    base = run(model)
    at = thrifty.attach(model, make(name, rank=4, scale=2.0))
    shake(at)
    y = run(model)
    assert not torch.allclose(y, base, atol=1e-3)
    at.merge()
    torch.testing.assert_close(run(model), y, atol=2e-4, rtol=1e-3)
    at.unmerge()
    at.save(tmp_path / "a")
    at.detach()
    torch.testing.assert_close(run(model), base)
    thrifty.load(model, tmp_path / "a")
    assert torch.equal(run(model), y)


def test_trains() -> None:
    model = tiny("vit")
    moved = frozen_stay(model, thrifty.attach(model, thrifty.FacT(rank=4)))
    assert len(moved) == 2 + 12 and all("edits" in n.split(".") for n in moved)


@pytest.mark.timm
def test_fused_projections() -> None:
    backbone = families.make("timm_vit")
    model = backbone.fresh()
    at = thrifty.attach(model, make("fact-tk", rank=4), example=backbone.example)
    assert at.context.shared.P["16"].shape[1] == 24
    shake(at, 0.2)
    y = backbone.output(model)
    at.merge()
    torch.testing.assert_close(backbone.output(model), y, atol=1e-4, rtol=1e-4)


def test_refusals() -> None:
    for settings in ({"form": "cp"}, {"rank": 0}, {"dropout": 1.0}, {"layout": "rows"}):
        with pytest.raises(NoSuchSetting, match=next(iter(settings))):
            thrifty.attach(tiny("vit"), thrifty.FacT(**settings))
    with pytest.raises(Unfit, match="maps 16 to 40"):
        thrifty.attach(tiny("vit", intermediate_size=40), thrifty.FacT())
    with pytest.raises(Unfit, match="linear layers"):
        thrifty.attach(tiny("resnet"), thrifty.FacT(where="conv"))
    with pytest.raises(NoSuchSite):
        thrifty.attach(tiny("resnet"), thrifty.FacT())

"""AdapterFusion: the reference arrays, its count, and what its equation promises; pruning after AdapterDrop."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import golden
from torch import Tensor

import thrifty
from thrifty.composition.fusion import Fusion
from thrifty.core.errors import CannotCombine, NoSuchSetting, WrongBase
from thrifty.methods.adapter_fusion import fusions, prune, shares
from thrifty.testing import tiny
from thrifty.testing.measuring import stir


def saved(folder: Path, seed: int, name: str = "bert", rank: int = 3, also: str | None = None) -> str:
    at = thrifty.attach(tiny.make(name).fresh(), thrifty.Pfeiffer(rank=rank), also_train=also)
    stir(at, seed, 0.2)
    return str(at.save(folder))


def fused(folders: list[str], **settings: Any) -> tuple[Any, thrifty.Attachment]:
    model = tiny.make("bert").fresh()
    return model, thrifty.attach(model, thrifty.AdapterFusion(adapters=",".join(folders), **settings))


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    return [saved(tmp_path / str(i), i) for i in range(3)]


def test_reference_arrays() -> None:
    g = golden("nlp_adapterfusion")
    fusion = Fusion(8).double()
    torch.testing.assert_close(fusion.value.weight, g["out/value_weight_at_init"], atol=1e-7, rtol=0)
    with torch.no_grad():
        for layer, kind in (("query", "weight"), ("query", "bias"), ("key", "weight"), ("key", "bias"), ("value", "weight")):
            getattr(getattr(fusion, layer), kind).copy_(g[f"w/{layer}_{kind}"])
    fusion.keep = True
    out = fusion(g["in/query"], g["in/adapter_outputs"]) + g["in/residual"]
    torch.testing.assert_close(out, g["out/output"], atol=1e-10, rtol=0)
    torch.testing.assert_close(fusion.attention, g["out/attention"], atol=1e-10, rtol=0)
    (out * g["in/probe"]).sum().backward()
    for layer, kind in (("query", "weight"), ("query", "bias"), ("key", "weight"), ("key", "bias"), ("value", "weight")):
        torch.testing.assert_close(getattr(getattr(fusion, layer), kind).grad, g[f"grad/{layer}_{kind}"], atol=1e-10, rtol=0)


def test_one_adapter_is_nearly_itself_and_exactly_with_v_as_the_identity(folders: list[str]) -> None:
    backbone = tiny.make("bert")
    model = backbone.fresh()
    thrifty.load(model, folders[0])
    wanted = backbone.output(model)
    model, at = fused(folders[:1])
    torch.testing.assert_close(backbone.output(model), wanted, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        for _, fusion in fusions(at):
            fusion.value.weight.fill_(0).fill_diagonal_(1)
    torch.testing.assert_close(backbone.output(model), wanted, atol=1e-6, rtol=1e-5)


def test_order_does_not_matter_and_twins_share(folders: list[str]) -> None:
    backbone = tiny.make("bert")
    model, at = fused(folders)
    again, other = fused([folders[2], folders[0], folders[1]])
    for (_, a), (_, b) in zip(fusions(at), fusions(other), strict=True):
        b.load_state_dict(a.state_dict())
    torch.testing.assert_close(backbone.output(again), backbone.output(model))
    _, twins = fused([folders[0], folders[0]])
    for parts in shares(twins, [backbone.example]).values():
        assert list(parts.values()) == pytest.approx([0.5, 0.5])
    for parts in shares(at, [backbone.example]).values():
        assert sum(parts.values()) == pytest.approx(1.0)


def test_only_the_fusion_trains_and_heads_are_left_out(tmp_path: Path) -> None:
    folders = [saved(tmp_path / str(i), i, also="head") for i in range(2)]
    model = tiny.make("bert").fresh()
    head = {n: p.clone() for n, p in model.named_parameters() if n.startswith("classifier")}
    at = thrifty.attach(model, thrifty.AdapterFusion(adapters=",".join(folders)), also_train="head")
    assert head and all(torch.equal(model.get_parameter(n), p) for n, p in head.items())
    assert all(":fusions." in n or n.startswith("base:classifier") for n, _ in at.named_parameters())
    assert set(at.about["dropped"]) == set(head)
    d, layers = 16, 2
    assert sum(p.numel() for n, p in at.named_parameters() if "fusions" in n) == layers * (3 * d * d + 2 * d)


def test_regulariser_at_the_start() -> None:
    assert float(Fusion(8).penalty()) == pytest.approx(8 * 7 * 1e-12, rel=1e-3)
    assert Fusion(8, value=False).penalty() == 0.0


def test_published_counts() -> None:
    with torch.device("meta"):
        counted = {value: 12 * sum(p.numel() for p in Fusion(768, value=value).parameters()) for value in (True, False)}
    assert counted == {True: 21_252_096, False: 14_174_208 + 0}


def test_annealing_cools_step_by_step_and_is_saved(folders: list[str], tmp_path: Path) -> None:
    model, at = fused(folders, anneal=True)
    method: Any = at.method
    assert {float(f.temperature) for _, f in fusions(at)} == {50.0}
    for i in range(3):
        method.step(at, i + 1, 3)
    assert {round(float(f.temperature), 4) for _, f in fusions(at)} == {49.85}
    at.save(tmp_path / "fused", unchanged=True)
    loaded = thrifty.load(tiny.make("bert").fresh(), tmp_path / "fused")
    assert {round(float(f.temperature), 4) for _, f in fusions(loaded)} == {49.85}
    for i in range(1100):
        method.step(at, i + 1, 1100)
    assert {float(f.temperature) for _, f in fusions(at)} == {1.0}


def test_pruning_keeps_the_most_attended(folders: list[str], tmp_path: Path) -> None:
    backbone = tiny.make("bert")
    model, at = fused(folders)
    stir(at, 5, 0.3)
    measured = shares(at, [backbone.example])
    kept = prune(at, [backbone.example], keep=2)
    for place, parts in measured.items():
        assert set(kept[place]) == set(sorted(parts, key=lambda n: parts[n])[1:])
    wanted: Tensor = backbone.output(model)
    at.save(tmp_path / "pruned")
    other = backbone.fresh()
    thrifty.load(other, tmp_path / "pruned")
    assert torch.equal(backbone.output(other), wanted)
    with pytest.raises(NoSuchSetting, match="keep=3 is not between 1 and the 2"):
        prune(at, [backbone.example], keep=3)


def test_what_cannot_be_fused(tmp_path: Path, folders: list[str]) -> None:
    model = tiny.make("bert").fresh()
    with pytest.raises(NoSuchSetting, match="adapters must be folders"):
        thrifty.attach(model, thrifty.AdapterFusion())
    lora = thrifty.attach(model, thrifty.LoRA(rank=2))
    stir(lora)
    lora.save(tmp_path / "lora")
    lora.detach()
    with pytest.raises(CannotCombine, match="cannot be fused"):
        thrifty.attach(model, thrifty.AdapterFusion(adapters=f"{folders[0]},{tmp_path / 'lora'}"))
    other = tiny.make("bert", seed=1).fresh()
    with pytest.raises(WrongBase):
        thrifty.attach(other, thrifty.AdapterFusion(adapters=folders[0]))
    assert not thrifty.attachments(model) and not thrifty.attachments(other)

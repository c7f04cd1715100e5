"""Life cycle, point 6: merging says what rounding lost, refuses to lose much, and gives the base back bit for bit."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from artifact_models import MODELS, answer, bert, plain, shake

import thrifty
from thrifty.core.errors import CannotMerge, ThriftyError


def adapted(name: str, method: Any, scale: float = 0.2, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    model = MODELS[name]().to(dtype)
    at = thrifty.attach(model, method)
    shake(at.parameters(), scale=scale)
    return model, at


METHODS = {
    "lora": ("bert", thrifty.LoRA(where="attn.?|mlp.*")), "rslora": ("llama", thrifty.LoRA(stable=True)),
    "fused": ("gpt2", thrifty.LoRA(where="attn.q|attn.v|mlp.out")), "conv": ("cnn", thrifty.LoRA(where="conv")),
    "dora": ("bert", thrifty.DoRA()), "dora-conv": ("cnn", thrifty.DoRA(where="conv")), "ia3": ("llama", thrifty.IA3()),
    "ia3-fused": ("gpt2", thrifty.IA3()), "embedding": ("bert", thrifty.LoRA(where="embed")),
}


@pytest.mark.parametrize("case", METHODS)
def test_merged_is_the_same_function_and_comes_apart_again(case: str) -> None:
    name, method = METHODS[case]
    model, at = adapted(name, method)
    keys = [k for k in model.state_dict() if "edits" not in k.split(".")]
    wanted = answer(model, name)
    base = {k: t.clone() for k, t in MODELS[name]().state_dict().items()}
    report = at.merge()
    assert (answer(model, name) - wanted).abs().max() < 1e-5
    assert list(model.state_dict()) == keys == list(base)
    assert report.errors and report.worst < 1e-6
    at.unmerge()
    assert torch.equal(answer(model, name), wanted)
    at.merge()
    at.detach()
    assert all(torch.equal(t, base[k]) for k, t in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_error_is_what_rounding_loses_of_the_effect(dtype: torch.dtype) -> None:
    """Recomputed: ||round(W + D) - (W + D)|| / ||D||, with D in double precision."""
    model, at = adapted("plain", thrifty.LoRA(rank=2, where="linear"), dtype=dtype)
    wanted: dict[str, float] = {}
    for key, edit in at.edits.items():
        path = key.partition("#")[0]
        delta = (16.0 / 2) * edit.B.detach().double() @ edit.A.detach().double()
        target = model.get_submodule(path).weight.detach().double() + delta
        wanted[path] = float((target.to(dtype).double() - target).norm() / delta.norm())
    report = at.merge(limit=1.0)
    assert report.errors == pytest.approx(wanted, rel=1e-3)
    assert report.worst > 1e-4 and f"{report.worst:.2e}" in str(report)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_effect_that_rounding_would_swallow(dtype: torch.dtype) -> None:
    model, at = adapted("plain", thrifty.LoRA(rank=2, where="linear"), scale=1e-4, dtype=dtype)
    for p in at.parameters():
        p.data *= 1e-2
    before = {k: t.clone() for k, t in model.state_dict().items()}
    with pytest.raises(CannotMerge, match=r"merging '0' in torch.*would lose \d+% of the adapter's effect \(limit 5%\)"):
        at.merge()
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items()) and not at.merged


def test_merged_twice() -> None:
    _, at = adapted("plain", thrifty.LoRA(where="linear"))
    at.merge()
    with pytest.raises(ThriftyError, match="'default' is merged already"):
        at.merge()
    at.unmerge()
    with pytest.raises(ThriftyError, match="is not merged"):
        at.unmerge()


def test_merged_for_good() -> None:
    model, at = adapted("plain", thrifty.LoRA(where="linear"))
    wanted = answer(model, "plain")
    at.merge(keep_base=False)
    assert (answer(model, "plain") - wanted).abs().max() < 1e-5
    assert not thrifty.attachments(model) and all(p.requires_grad for p in model.parameters())
    with pytest.raises(ThriftyError, match="merged for good"):
        at.merge()


def test_saved_while_merged(tmp_path: Path) -> None:
    model, at = adapted("bert", thrifty.LoRA())
    wanted = answer(model, "bert")
    at.merge()
    at.save(tmp_path / "a")
    again = bert()
    assert thrifty.load(again, tmp_path / "a").base_match == "exactly"
    assert torch.equal(answer(again, "bert"), wanted)


def test_two_adapters_merge_and_part(tmp_path: Path) -> None:
    model, first = adapted("plain", thrifty.LoRA(where="linear"))
    base = {k: t.clone() for k, t in plain().state_dict().items()}
    second = thrifty.attach(model, thrifty.LoRA(where="linear"), "second")
    shake(second.parameters(), seed=8)
    wanted = answer(model, "plain")
    first.merge()
    second.merge()
    assert (answer(model, "plain") - wanted).abs().max() < 1e-5
    second.detach()
    first.detach()
    assert all(torch.equal(t, base[k]) for k, t in model.state_dict().items())


def test_edits_that_do_not_commute() -> None:
    model, first = adapted("plain", thrifty.LoRA(where="linear"))
    second = thrifty.attach(model, thrifty.IA3(where="linear"), "second")
    shake(second.parameters())
    with pytest.raises(CannotMerge, match="'0' also holds Scale of another attachment.*do not commute"):
        first.merge()


def test_edits_that_are_no_change_of_a_weight() -> None:
    _, at = adapted("bert", thrifty.Pfeiffer())
    with pytest.raises(CannotMerge, match="is not a change of a weight"):
        at.merge()


def test_a_change_that_is_not_finite() -> None:
    model, at = adapted("plain", thrifty.LoRA(where="linear"))
    with torch.no_grad():
        at.parameters()[0].fill_(float("inf"))
    with pytest.raises(CannotMerge, match="not finite"):
        at.merge()
    assert torch.equal(model[0].weight, plain()[0].weight)


def test_parameters_that_train_in_place_stay(tmp_path: Path) -> None:
    model = bert()
    at = thrifty.attach(model, thrifty.LoRA(), also_train="head")
    shake(at.parameters())
    wanted = answer(model, "bert")
    at.merge()
    assert (answer(model, "bert") - wanted).abs().max() < 1e-5
    at.detach()
    assert torch.equal(model.classifier.weight, bert().classifier.weight)

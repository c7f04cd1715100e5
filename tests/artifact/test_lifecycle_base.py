"""Life cycle, point 4: an adapter knows its base by the contents of its weights."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from artifact_models import MODELS, answer, bert, plain, shake
from torch import nn

import thrifty
from thrifty.core.errors import ThriftyError, WrongBase


def saved(folder: Path, model: nn.Module, where: str = "linear") -> Path:
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where=where))
    shake(at.parameters())
    return at.save(folder)


@torch.no_grad()
def nudge(model: nn.Module, name: str, alter: Callable[[Any], Any]) -> nn.Module:
    p = model.get_parameter(name) if name in dict(model.named_parameters()) else model.get_buffer(name)
    p.copy_(alter(p.clone()))
    return model


def one(p: torch.Tensor) -> torch.Tensor:
    """The last entry moves by the least that its precision can say."""
    flat = p.flatten()
    flat[-1] = torch.nextafter(flat[-1], torch.tensor(10.0))
    return flat.view_as(p)


OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "another seed": (lambda: plain(2), "8 of 11 tensors"),
    "one weight by one bit": (lambda: nudge(plain(), "3.weight", one), "1 of 11 tensors .* the first is '3.weight'"),
    "one layer": (lambda: nudge(plain(), "5.bias", lambda p: p + 1), "'5.bias'"),
    "transposed": (lambda: nudge(plain(), "3.weight", lambda p: p.T.contiguous()), "'3.weight'"),
    "two rows swapped": (lambda: nudge(plain(), "3.weight", lambda p: p[[1, 0, *range(2, 8)]]), "'3.weight'"),
    "negated": (lambda: nudge(plain(), "3.weight", lambda p: -p), "'3.weight'"),
    "running statistics": (lambda: nudge(plain(), "1.running_mean", lambda p: p + 0.5), "'1.running_mean'"),
    "extra layer": (lambda: nn.Sequential(*plain(), nn.Linear(3, 3)), "0 are missing here .* 2 are not in its base .*'6.bias'|"
                                                                      "2 are not in its base"),
    "missing layer": (lambda: plain()[:5], "2 are missing here"),
    "within bfloat16's rounding": (lambda: nudge(plain(), "3.weight", lambda p: p * (1 + 1e-5)), "'3.weight'"),
    "bfloat16 copy of another": (lambda: plain(2).bfloat16(), "10 of 11 tensors"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_bases_are_refused(case: str, tmp_path: Path) -> None:
    make, said = OTHERS[case]
    saved(tmp_path / "a", plain())
    model = make()
    with pytest.raises(WrongBase, match=f"(?s){said}"):
        thrifty.load(model, tmp_path / "a")
    assert not thrifty.attachments(model)


def test_any_base_when_that_is_meant(tmp_path: Path) -> None:
    saved(tmp_path / "a", plain())
    assert thrifty.load(plain(2), tmp_path / "a", base="any").base_match == "not compared"
    with pytest.raises(ThriftyError, match="'same' or 'any', not 'similar'"):
        thrifty.load(plain(), tmp_path / "a", base="similar")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_copies_of_the_base(dtype: torch.dtype, tmp_path: Path) -> None:
    saved(tmp_path / "a", bert(), "attn.q")
    model = bert().to(dtype)
    at = thrifty.load(model, tmp_path / "a")
    assert at.base_match == f"rounded to {str(dtype).partition('.')[2]}"
    assert all(p.dtype == torch.float32 for p in at.parameters())


def test_mixed_copy_with_float32_norms(tmp_path: Path) -> None:
    saved(tmp_path / "a", bert(), "attn.q")
    model = bert().bfloat16()
    reference = dict(bert().named_parameters())
    for name, p in model.named_parameters():
        if "LayerNorm" in name:
            p.data = reference[name].data.clone()
    assert thrifty.load(model, tmp_path / "a").base_match == "rounded to bfloat16"


def test_a_half_precision_base_upcast(tmp_path: Path) -> None:
    saved(tmp_path / "a", bert().bfloat16(), "attn.q")
    assert thrifty.load(bert().bfloat16().float(), tmp_path / "a").base_match == "rounded to bfloat16"
    with pytest.raises(WrongBase):
        thrifty.load(bert(2).bfloat16().float(), tmp_path / "a")


def test_fewer_and_more_layers(tmp_path: Path) -> None:
    saved(tmp_path / "a", bert(layers=2), "attn.q")
    with pytest.raises(WrongBase, match="0 are missing here .* 16 are not in its base"):
        thrifty.load(bert(layers=3), tmp_path / "a")
    with pytest.raises(WrongBase, match="16 are missing here"):
        thrifty.load(bert(layers=1), tmp_path / "a")


def test_what_trains_with_the_adapter_is_no_part_of_the_base(tmp_path: Path) -> None:
    """A new head is drawn anew for every task: it comes with the adapter, whatever the model has there."""
    model = bert()
    at = thrifty.attach(model, thrifty.LoRA(where="attn.q"), also_train="head")
    shake(at.parameters())
    wanted = answer(model, "bert")
    at.save(tmp_path / "a")
    other = nudge(bert(), "classifier.weight", lambda p: torch.zeros_like(p))
    assert thrifty.load(other, tmp_path / "a").base_match == "exactly"
    assert torch.equal(answer(other, "bert"), wanted)


def test_other_attachments_do_not_hide_the_base(tmp_path: Path) -> None:
    saved(tmp_path / "a", plain())
    model = plain()
    other = thrifty.attach(model, thrifty.LoRA(where="linear"), "other", also_train="1")
    shake(other.parameters())
    assert thrifty.load(model, tmp_path / "a", "again").base_match == "exactly"
    thrifty.attachments(model)["again"].detach()
    other.merge()
    assert thrifty.load(model, tmp_path / "a", "again").base_match == "exactly"


def test_a_name_proves_nothing(tmp_path: Path) -> None:
    first, second = bert(1), bert(2)
    first.config._name_or_path = second.config._name_or_path = "bert-base-uncased"
    saved(tmp_path / "a", first, "attn.q")
    with pytest.raises(WrongBase):
        thrifty.load(second, tmp_path / "a")


def test_models_are_told_by_shape_too(tmp_path: Path) -> None:
    saved(tmp_path / "a", MODELS["cnn"](), "conv")
    with pytest.raises(WrongBase, match="other tensors"):
        thrifty.load(plain(), tmp_path / "a")

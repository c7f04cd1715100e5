"""Merging: exact in the weights, measured in its rounding, refused where that would swallow the adapter, and undone bit for bit."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

import thrifty
from thrifty.core import Edit, Method, Site, register
from thrifty.core.errors import CannotMerge, HalfAdapted, ThriftyError
from thrifty.core.ledger import ledger
from thrifty.methods.ia3 import Scale
from thrifty.methods.lora import LowRank
from thrifty.testing import tiny
from thrifty.testing.measuring import put, stir

X = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))


def _linear(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 8)).to(dtype)


def _attach(model: nn.Module, size: float, name: str = "default") -> thrifty.Attachment:
    at = thrifty.attach(model, thrifty.LoRA(rank=2, alpha=4.0, where="0"), name=name, example=X.to(model[0].weight.dtype))
    stir(at, size=size)
    return at


def test_the_weight_moves_by_scale_b_a() -> None:
    model = _linear()
    before = model[0].weight.detach().clone()
    at = _attach(model, 0.3)
    edit = at.edits["0#low-rank"]
    wanted = (before.double() + 2.0 * edit.B.detach().double() @ edit.A.detach().double()).float()
    report = at.merge()
    torch.testing.assert_close(model[0].weight.detach(), wanted, rtol=1e-6, atol=1e-7)
    assert set(report.errors) == {"0"} and 0 < report.worst < 1e-6


def test_the_reported_error_is_that_of_rounding() -> None:
    model = _linear(torch.bfloat16)
    before = model[0].weight.detach().double()
    at = _attach(model, 0.2)
    edit = at.edits["0#low-rank"]
    change = 2.0 * edit.B.detach().double() @ edit.A.detach().double()
    report = at.merge(limit=1.0)
    lost = (model[0].weight.detach().double() - (before + change)).norm() / change.norm()
    assert report.worst == pytest.approx(float(lost), rel=1e-4)


def test_an_adapter_that_rounding_would_swallow_is_refused_before_anything_is_touched() -> None:
    model = _linear(torch.bfloat16)
    before = model[0].weight.detach().clone()
    at = _attach(model, 0.005)
    with pytest.raises(CannotMerge, match=r"merging '0' in torch\.bfloat16 would lose"):
        at.merge()
    assert torch.equal(model[0].weight, before)
    assert not at.merged and "0#low-rank" in at.edits


def test_values_that_are_not_finite_are_refused() -> None:
    model = _linear()
    at = _attach(model, 0.1)
    with torch.no_grad():
        at.edits["0#low-rank"].B[0, 0] = float("nan")
    with pytest.raises(CannotMerge, match="not finite"):
        at.merge()


def test_merging_twice_and_unmerging_what_is_not_merged() -> None:
    at = _attach(_linear(), 0.1)
    with pytest.raises(ThriftyError, match="not merged"):
        at.unmerge()
    at.merge()
    with pytest.raises(ThriftyError, match="merged already"):
        at.merge()


def test_without_the_base_the_merge_is_final() -> None:
    model = _linear()
    at = _attach(model, 0.1)
    edited = model(X)
    at.merge(keep_base=False)
    torch.testing.assert_close(model(X), edited)
    assert not thrifty.attachments(model)
    with pytest.raises(ThriftyError):
        at.merge()


@pytest.mark.parametrize("first", ["one", "two"])
def test_two_merged_attachments_come_off_in_either_order(first: str) -> None:
    model = _linear()
    before = model[0].weight.detach().clone()
    both = {name: _attach(model, 0.1, name) for name in ("one", "two")}
    last = both["two" if first == "one" else "one"]
    edited = model(X)
    with both[first].disabled():
        alone = model(X)
    both["one"].merge()
    both["two"].merge()
    torch.testing.assert_close(model(X), edited)
    both[first].detach()
    torch.testing.assert_close(model(X), alone)
    last.unmerge()
    assert torch.equal(model[0].weight, before)
    torch.testing.assert_close(model(X), alone)
    last.detach()
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("first", ["bias", "full", "lora"])
def test_what_trains_in_place_and_what_is_merged_above_it_come_off_in_either_order(first: str) -> None:
    model = _linear()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    kind = thrifty.BitFit() if first == "bias" else thrifty.FullFineTuning()
    place = thrifty.attach(model, kind, name="place", example=X)
    stir(place)
    lora = _attach(model, 0.1, "lora")
    edited = model(X)
    lora.merge()
    torch.testing.assert_close(model(X), edited)
    with place.disabled():
        assert not torch.allclose(model(X), edited, atol=1e-3)
    torch.testing.assert_close(model(X), edited)
    order = (lora, place) if first == "lora" else (place, lora)
    for at in order:
        at.detach()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("first", ["one", "two"])
def test_two_merges_into_a_quantised_layer_come_off_in_either_order(first: str) -> None:
    model = torch.ao.quantization.quantize_dynamic(_linear(), {"0"}, dtype=torch.qint8)
    base, quantised = model(X), model[0]
    both = {}
    for name in ("one", "two"):
        both[name] = thrifty.attach(model, thrifty.LoRA(rank=2, where="0"), name=name, example=X)
        stir(both[name])
    edited = model(X)
    for at in both.values():
        at.merge(quantised="dequantise")
    torch.testing.assert_close(model(X), edited, rtol=0.05, atol=0.05)
    both[first].detach()
    both["two" if first == "one" else "one"].detach()
    assert model[0] is quantised
    assert torch.equal(model(X), base)


def test_the_base_is_known_under_merges() -> None:
    backbone = tiny.make("attender")
    model = backbone.fresh()
    for name in ("one", "two"):
        at = thrifty.attach(model, thrifty.LoRA(rank=2, where="attn.?"), name=name, example=backbone.example)
        stir(at)
        at.merge()
    book = ledger(model)
    assert book is not None
    found, wanted = book.base_tensors(), backbone.model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)


def test_a_final_merge_that_another_attachment_would_undo_is_refused() -> None:
    model = _linear()
    one, two = _attach(model, 0.1, "one"), _attach(model, 0.1, "two")
    one.merge()
    before = model[0].weight.detach().clone()
    with pytest.raises(CannotMerge, match=r"'one' keeps the original of '0\.weight'"):
        two.merge(keep_base=False)
    assert torch.equal(model[0].weight, before) and not two.merged
    with pytest.raises(HalfAdapted, match="'one' is merged into '0.weight'"):
        thrifty.attach(model, thrifty.FullFineTuning(), name="full", example=X)
    one.unmerge()
    one.merge(keep_base=False)
    two.merge(keep_base=False)
    assert not thrifty.attachments(model)


def test_a_merged_attachment_cannot_be_switched() -> None:
    """Disabled, it would claim to be the base and answer what is merged."""
    at = _attach(_linear(), 0.1)
    at.merge()
    with pytest.raises(ThriftyError, match="unmerge"):
        at.disable()
    with pytest.raises(ThriftyError, match="unmerge"), at.disabled():
        pass


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "phi3", "deberta"])
def test_parts_of_a_fused_projection_merge_into_their_own_rows(name: str) -> None:
    backbone = tiny.make(name)
    model, at = put(thrifty.LoRA(rank=2, where="attn.q[0]"), backbone)
    stir(at)
    site = at.sites("attn.q[0]")[0]
    whole, rest = site.module.weight.detach().clone(), at.sites("attn.k[0]|attn.v[0]")
    others = [s.weight.detach().clone() for s in rest]
    edited = backbone.output(model)
    at.merge()
    torch.testing.assert_close(backbone.output(model), edited, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(s.weight, o) for s, o in zip(rest, others, strict=True))
    at.detach()
    assert torch.equal(site.module.weight, whole)


@register("turn")
class Turn(Edit):
    """u + M u + m [16], for all that ``readers`` make of it."""

    def __init__(self, site: Site, port: str, readers: list[str]):
        super().__init__(site)
        self.port, self.readers = port, readers
        self.M, self.m = nn.Parameter(torch.zeros(16, 16)), nn.Parameter(torch.zeros(16))

    def forward(self, u: torch.Tensor, x: torch.Tensor | None = None) -> torch.Tensor:
        return u + nn.functional.linear(u, self.M, self.m)

    def folds_into(self) -> tuple[str, ...]:
        return tuple(self.readers)

    def fold(self, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        assert bias is not None
        return weight + weight @ self.M.to(weight.dtype), bias + weight.to(bias.dtype) @ self.m.to(bias.dtype)


@dataclass
class Several(Method):
    """Several edits of one linear layer, in the order given."""

    name = "several"
    kinds: list[tuple[type[thrifty.Edit], dict[str, Any]]] = field(default_factory=list)

    def attach(self, at: thrifty.Attachment, batches: Any = None) -> None:
        for kind, numbers in self.kinds:
            at.put(at.sites("0")[0], kind, **numbers)


def test_what_changes_the_input_folds_in_behind_what_reads_it() -> None:
    before: list[Any] = [(Scale, {"port": "input"}), (Turn, {"port": "input", "readers": ["0"]})]
    beside: list[Any] = [(LowRank, {"rank": 2, "alpha": 4.0})]
    for kinds in (before + beside, beside + before, before[::-1] + beside):
        model = _linear()
        at = thrifty.attach(model, Several(kinds=kinds), example=X)
        stir(at, size=0.3)
        y = model(X)
        at.merge()
        torch.testing.assert_close(model(X), y, rtol=1e-5, atol=1e-5)


def test_an_edit_may_fold_into_all_that_read_its_site() -> None:
    class Reads(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            u = self[0](x)
            return self[1](u) + self[2](u)

    model = Reads(nn.LayerNorm(16), nn.Linear(16, 8), nn.Linear(16, 8))
    at = thrifty.attach(model, Several(kinds=[(Turn, {"port": "output", "readers": ["1", "2"]})]), example=X)
    stir(at, size=0.3)
    y, norm = model(X), model[0].weight.clone()
    assert set(at.merge().errors) == {"1", "2"} and torch.equal(model[0].weight, norm)
    torch.testing.assert_close(model(X), y, rtol=1e-5, atol=1e-5)
    at.unmerge()
    other = thrifty.attach(model, Several(kinds=[(Scale, {"port": "output"})]), name="other", example=X)
    with pytest.raises(CannotMerge, match="Scale of another attachment"):  # at the site, though not at what reads it
        at.merge()
    other.detach()
    at.merge()

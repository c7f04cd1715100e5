"""Edits that are taken away or replaced while the attachment stays, and edits on modules that call each of their children."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import thrifty
from thrifty.methods.branches.bottleneck import Bottleneck
from thrifty.methods.lora import LowRank
from thrifty.testing import tiny
from thrifty.testing.measuring import put, stir

FIRST, LAST = (f"bert.encoder.layer.{i}.attention.self.query#low-rank" for i in range(2))


def test_a_dropped_edit_is_gone_from_model_plan_and_file(tmp_path: Path) -> None:
    backbone = tiny.make("bert")
    model, at = put(thrifty.LoRA(rank=2, where="attn.q"), backbone)
    stir(at)
    site = at.take_away(FIRST)
    assert site.path == FIRST.partition("#")[0] and not hasattr(site.module, "edits")
    assert [row.key for row in at.plan] == list(at.edits) == list(at.slots) == [LAST]
    at.save(tmp_path / "a")
    fresh = backbone.fresh()
    thrifty.load(fresh, tmp_path / "a")
    assert torch.equal(backbone.output(fresh), backbone.output(model))
    at.detach()
    assert torch.equal(backbone.output(model), backbone.output(backbone.fresh()))


def test_a_replaced_edit_acts_trains_and_stays_off_if_it_was() -> None:
    backbone = tiny.make("bert")
    model, at = put(thrifty.LoRA(rank=2, where="attn.q"), backbone)
    at.disable(lambda row: row.key == FIRST)
    before = backbone.output(model)
    for key in (FIRST, LAST):
        made = at.replace(key, LowRank, rank=3, alpha=6.0)
        assert made is at.edits[key] and made.A.shape[0] == 3
    assert [row.numbers["rank"] for row in at.plan] == [3, 3] and [row.on for row in at.plan] == [False, True]
    stir(at)
    at.disable()
    assert torch.equal(backbone.output(model), before)
    at.enable()
    for _ in range(4):  # all that trains is watched: the third pass would stop if a tensor got no gradient
        backbone.logits(backbone.run(model)).sum().backward()
    assert {n.rpartition(":")[0] for n, p in at.named_parameters() if p.grad is not None} == {f"edit:{FIRST}", f"edit:{LAST}"}


def test_of_two_of_a_kind_the_second_keeps_its_name(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4)
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="0"))
    at.put(next(iter(at.edits.values())).site, LowRank, rank=1, alpha=1.0)
    stir(at)
    at.take_away("0#low-rank")
    y = model(x)
    at.save(tmp_path / "a")
    at.detach()
    again = thrifty.load(model, tmp_path / "a")
    assert [row.key for row in again.plan] == list(again.edits) == ["0#low-rank+"] and torch.equal(model(x), y)


def test_edits_on_a_sequential_act_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 6), nn.Tanh()))
    x = torch.randn(3, 4)
    base = model(x)
    at = thrifty.Attachment(model, tied="leave")
    edit = at.put(_site(at, "1"), Bottleneck, rank=2, act="relu", init="normal", std=0.5)
    torch.testing.assert_close(model(x), base + edit.branch(base))
    at.detach()
    assert torch.equal(model(x), base)


def _site(at: thrifty.Attachment, path: str) -> thrifty.Site:
    from thrifty.core.probe import Seen
    from thrifty.core.site import at_path

    return at_path(at.model, path, "block", None, 0, "", Seen(at.model, torch.zeros(1, 4)))

"""AdapterDrop: what is skipped is not there, not even in the backward pass; the robust form draws as it says."""
from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import published
from torch import Tensor, nn

import thrifty
from thrifty.core.errors import NoSuchSetting, NothingTrains
from thrifty.testing import tiny
from thrifty.testing.measuring import loss, stir


def blocks(model: Any) -> list[nn.Module]:
    return [site.module for site in thrifty.sites(model, "block")]


def test_it_equals_the_adapter_attached_higher_up() -> None:
    backbone = tiny.make("bert")
    model, other = backbone.fresh(), backbone.fresh()
    a = thrifty.attach(model, thrifty.AdapterDrop(skip=1, settings_of={"rank": 3}))
    b = thrifty.attach(other, thrifty.Pfeiffer(rank=3, where="block[1:]"))
    b.load_state(a.state())
    assert torch.equal(backbone.output(model), backbone.output(other))


@pytest.mark.parametrize("adapter", ["pfeiffer", "houlsby", "lora"])
def test_the_backward_pass_ends_where_the_adapters_do(adapter: str) -> None:
    backbone = tiny.make("bert")
    model = backbone.fresh()
    thrifty.attach(model, thrifty.AdapterDrop(adapter=adapter, skip=1, settings_of={"rank": 2}))
    graphs: list[bool] = []
    for block in blocks(model):
        block.register_forward_hook(lambda m, a, out: graphs.append((out if isinstance(out, Tensor) else out[0]).requires_grad))
    loss(backbone, model).backward()
    assert graphs == [False, True]
    assert not any(p.grad is not None for p in blocks(model)[0].parameters())


def test_all_skipped_leaves_the_head_alone() -> None:
    backbone = tiny.make("bert")
    model = backbone.fresh()
    at = thrifty.attach(model, thrifty.AdapterDrop(skip=2), also_train="head")
    assert not at.plan and all(n.startswith("base:classifier") for n, _ in at.named_parameters())
    assert torch.equal(backbone.output(model), backbone.output(backbone.fresh()))
    with pytest.raises(NothingTrains):
        thrifty.attach(backbone.fresh(), thrifty.AdapterDrop(skip=2))


def test_published_count() -> None:
    at = thrifty.attach(published("bert-base"), thrifty.AdapterDrop(skip=5))
    assert sum(p.numel() for p in at.parameters()) == 521_808


def test_robust_training_draws_uniformly_and_evaluation_uses_all() -> None:
    backbone = tiny.make("bert")
    model = backbone.fresh()
    at = thrifty.attach(model, thrifty.AdapterDrop(robust=True, settings_of={"rank": 2}))
    stir(at)
    wanted = backbone.output(model)
    edits = [at.edits[row.key] for row in at.plan if row.depth >= 0]
    torch.manual_seed(0)
    model.train()
    skipped: Counter[int] = Counter()
    for _ in range(400):
        backbone.run(model)
        skipped.update(edit.site.depth for edit in edits if not edit.on)
    assert 160 < skipped[0] < 240 and skipped[1] == 0  # (L - 1 - i) / L with L = 2
    model.eval()
    assert torch.equal(backbone.output(model), wanted)
    at.disable(lambda row: 0 <= row.depth < 1)
    other = backbone.fresh()
    upper = thrifty.attach(other, thrifty.Pfeiffer(rank=2, where="block[1:]"))
    upper.load_state({n: t for n, t in at.state().items() if ".1." in n})
    assert torch.equal(backbone.output(model), backbone.output(other))


def test_robust_training_in_a_plain_loop_and_its_end(tmp_path: Path) -> None:
    backbone = tiny.make("bert")
    model = backbone.fresh()
    method = thrifty.AdapterDrop(robust=True, settings_of={"rank": 2})
    at = thrifty.attach(model, method, also_train="head")
    optimiser = torch.optim.AdamW(at.parameters(), lr=1e-3)
    torch.manual_seed(1)
    model.train()
    for _ in range(8):
        optimiser.zero_grad()
        loss(backbone, model).backward()
        optimiser.step()
    method.finish(at)
    assert all(edit.on for edit in at.edits.values()) and "draw-depth" not in {row.edit for row in at.plan}
    model.eval()
    wanted = backbone.output(model)
    at.save(tmp_path / "a")
    other = backbone.fresh()
    thrifty.load(other, tmp_path / "a")
    assert torch.equal(backbone.output(other), wanted)


def test_tasks_over_one_trunk(tmp_path: Path) -> None:
    backbone = tiny.make("bert")
    folders, wanted = {}, []
    for i, name in enumerate(("rte", "mrpc", "cola")):
        model = backbone.fresh()
        at = thrifty.attach(model, thrifty.AdapterDrop(skip=1), also_train="head")
        stir(at, i)
        wanted.append(backbone.output(model))
        folders[name] = at.save(tmp_path / name)
    model = backbone.fresh()
    at = thrifty.compose(model, thrifty.Parallel(folders))
    seen: list[int] = []
    for block in blocks(model):
        block.register_forward_pre_hook(lambda m, a: seen.append(len(a[0])))
    torch.testing.assert_close(backbone.output(model), torch.cat(wanted), rtol=1e-5, atol=1e-6)
    assert seen == [2, 6]  # the first block sees the batch once


def test_settings_without_a_meaning() -> None:
    for settings, said in (({"skip": -1}, "at least 0"), ({"adapter": "adapter-drop"}, "another method"),
                           ({"adapter": "pfeifer"}, "Did you mean"), ({"settings_of": {"rnak": 3}}, "Did you mean 'rank'")):
        with pytest.raises(NoSuchSetting, match=said):
            thrifty.attach(tiny.make("bert").fresh(), thrifty.AdapterDrop(**settings))  # type: ignore[arg-type]
    with pytest.raises(NoSuchSetting, match="at most 2"):
        thrifty.attach(tiny.make("bert").fresh(), thrifty.AdapterDrop(skip=3))

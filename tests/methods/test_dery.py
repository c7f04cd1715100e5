"""DeRy: blocks that are cut out, costs that are exact, limits that are kept, and the network that comes of it."""
from __future__ import annotations

import itertools
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import small_zoos as small
import torch
import torch.nn.functional as F
from torch import nn

import thrifty
from thrifty.core.errors import Missing, NoSuchSetting, ThriftyError, Unfit
from thrifty.core.roles import blocks as find_blocks
from thrifty.methods.depth.flops import flops
from thrifty.testing import PROMISES, contract
from thrifty.testing.tiny import Tiny
from thrifty.zoo import Zoo
from thrifty.zoo.assembled import Assembled
from thrifty.zoo.choosing import Limits, Program, search, totals
from thrifty.zoo.greedy import search_greedily
from thrifty.zoo.nodes import read_chains
from thrifty.zoo.reassembly import make_block
from thrifty.zoo.routes import Block, lay_out

QUICK: dict[str, Any] = {"blocks": 2, "probe": 8, "trials": 5, "candidates": 3, "params": 1.0, "flops": 1.0}
WIDE = Limits(1e6, 1e6)
EXAMPLE = {"pixel_values": small.pictures(2, 3)}


def three() -> Zoo:
    return small.zoo(small.resnet(1), small.resnet(2, depths=(1, 2), widths=(24, 40), kind="bottleneck"), small.vit(3))


def attached(zoo: Zoo, **changes: Any) -> thrifty.Attachment:
    return thrifty.attach(zoo, thrifty.DeRy(**{**QUICK, **changes}), example=EXAMPLE, batches=small.lessons(8))


def halves(zoo: Zoo) -> list[Block]:
    """Each model in two blocks, whose groups are their stages."""
    chains, found = read_chains(zoo, [small.pictures(8)]), []
    for chain, name in zip(chains, zoo.trunk.names, strict=True):
        middle = len(chain.nodes) // 2
        found += [make_block(chain, name, 0, 0, 0, middle), make_block(chain, name, 1, 1, middle, len(chain.nodes))]
    return found


def test_chains_are_the_blocks_in_the_order_in_which_they_run() -> None:
    zoo = small.zoo(small.resnet(1), small.vit(2), small.mobilenet(3))
    chains = read_chains(zoo, [small.pictures(4), small.pictures(2, 1)])
    for i, chain in enumerate(chains):
        assert [node.path for node in chain.nodes] == [f"trunk.base{i}.{path}" for path in find_blocks(zoo.trunk.base(i))]
        assert [node.next for node in chain.nodes] == [*(node.path for node in chain.nodes[1:]), ""]
    assert [len(chain.nodes) for chain in chains] == [4, 4, 16] and [c.nodes[0].tokens for c in chains] == [False, True, False]
    first = chains[0].nodes[0]
    assert (first.width, first.out, first.side) == (8, 16, 8) and chains[0].entering[0].shape == (6, 8)
    x = torch.cat([small.pictures(4), small.pictures(2, 1)])
    with torch.no_grad():
        stem = zoo.trunk.base0.resnet.embedder(x)
        assert torch.allclose(chains[0].entering[0].float(), stem.mean((2, 3)), atol=1e-5)
        last = zoo.trunk.base0.resnet.encoder(stem)[0]
    assert torch.allclose(chains[0].leaving[-1].float(), last.mean((2, 3)), atol=1e-4)


def test_blocks_that_cannot_be_cut_are_named() -> None:
    from thrifty.testing import tiny

    zoo = small.zoo(small.resnet(1), tiny.make("convnext").fresh())
    with pytest.raises(Unfit, match="between the blocks .* of 'b' something runs"):
        attached(zoo)
    with pytest.raises(Unfit, match="'b' .* cannot be cut out"):
        attached(small.zoo(small.resnet(1), tiny.make("swin").fresh()))

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.head(pixel_values.mean((2, 3)))

    with pytest.raises(Unfit, match="'b' .*has no blocks"):
        attached(small.zoo(small.resnet(1), Flat()))


def test_costs_are_those_of_the_network_that_is_built() -> None:
    zoo = three()
    blocks = halves(zoo)
    steps = lay_out(zoo, blocks, (3, 32, 32), 3)
    route = [next(s for s in steps if s.origin is None and s.block == 0), None]
    assert route[0].gives == (16, 8, 8) and route[0].parameters == 149 * 8 + sum(
        p.numel() for node in blocks[0].nodes for p in zoo.get_submodule(node.path).parameters())
    for assembly in (["a[0:2]", "b[1:3]"], ["b[0:1]", "c[2:4]"], ["c[0:1]", "c[2:4]"], ["a[0:4]", "c[0:2]"]):
        fresh = three()
        at = attached(fresh, assembly=assembly)
        edit = next(e for e in at.edits.values() if isinstance(e, Assembled))
        said = at.about["measured"]
        held = [p for part in edit.blocks for node in part for p in node.parameters()]
        new = sum(p.numel() for p in at.parameters())
        assert said["parameters"] == new + sum(p.numel() for p in held) and said["blocks"] == assembly
        assert 2 * said["operations"] == flops(fresh, {"pixel_values": small.pictures(1)})


def test_what_trains_when_blocks_are_fixed() -> None:
    """Stem 147 C + 2 C, stitches 2 C_in + C_in C_out s², head."""
    zoo = small.zoo(small.resnet(1), small.resnet(2, widths=(24, 40)))
    at = attached(zoo, assembly=["a[0:2]", "b[2:4]"])  # 16 channels of 8 x 8 into a block used to 24 of 8 x 8
    assert sum(p.numel() for p in at.parameters()) == 149 * 8 + (2 * 16 + 16 * 24) + (40 + 1) * 3
    frozen = {n: p.clone() for n, p in zoo.named_parameters() if not p.requires_grad}
    assert len(frozen) == len(list(small.zoo(small.resnet(1), small.resnet(2, widths=(24, 40))).parameters()))
    zoo.train()
    zoo(small.pictures(4))
    assert not zoo.get_submodule("trunk.base0.resnet.encoder.stages.0.layers.0").training
    strided = attached(small.zoo(small.resnet(1), small.resnet(2, widths=(24, 40))), assembly=["a[0:1]", "b[3:4]"])
    assert sum(p.numel() for p in strided.parameters()) == 149 * 8 + (2 * 16 + 16 * 40 * 4) + 41 * 3, "8 x 8 into 4 x 4: stride 2"


def test_all_blocks_of_one_model_are_that_model() -> None:
    model = small.resnet(1)
    whole = small.zoo(model, small.vit(2))
    at = attached(whole, assembly=["a[0:1]", "a[1:3]", "a[3:4]"], rejoin=True)
    edit = next(e for e in at.edits.values() if isinstance(e, Assembled))
    x = small.pictures()
    with torch.no_grad():
        stem = F.max_pool2d(F.relu(edit.stem.norm(edit.stem.convolution(x))), 3, 2, 1)
        wanted = whole.trunk.base0.resnet.encoder(stem)[0].mean((2, 3))
        assert torch.allclose(whole.trunk(x).pooler_output, wanted, atol=1e-5)
    assert all(stitch.project is None for stitch in edit.stitches)


@pytest.mark.parametrize("seed", range(3))
def test_the_search_is_exhaustive_on_a_small_zoo_and_greedy_is_no_better(seed: int) -> None:
    zoo = small.zoo(small.resnet(1), small.resnet(2, depths=(1, 2), widths=(24, 40)), small.resnet(3, kind="bottleneck"))
    blocks = halves(zoo)
    steps = lay_out(zoo, blocks, (3, 32, 32), 3)
    rng = Random(seed)
    values = {pair: rng.gauss(0, 1) - 5 for pair in itertools.product((0, 2, 4), (1, 3, 5))}  # below 0, which must count too

    def score(route: Any) -> float:
        return values[route[0].block, route[1].block]

    after = {(s.origin, s.block): s for s in steps}
    routes = {pair: [one := after[None, pair[0]], after[one.place, pair[1]]] for pair in values}
    sizes = sorted(totals(route)[0] for route in routes.values())
    for limits in (WIDE, Limits(sizes[4] / 1e6, 1e6), Limits(sizes[-1] / 1e6, 1e6, least_parameters=sizes[3] / 1e6)):
        kept = {pair: value for pair, value in values.items() if limits.keeps(routes[pair])}
        assert 0 < len(kept) <= 9
        route, value, count = search(Program(steps, blocks), limits, score, 100)
        assert value == max(kept.values()) and count == len(kept)
        assert sorted(blocks[s.block].stage for s in route) == sorted(blocks[s.block].group for s in route) == [0, 1]
        met, best, _ = search_greedily(steps, blocks, limits, score, 5, Random(seed))
        assert limits.keeps(met) and best <= value


def test_proposals_come_in_the_order_of_what_their_blocks_are_worth() -> None:
    zoo = three()
    blocks = halves(zoo)
    steps = lay_out(zoo, blocks, (3, 32, 32), 3)
    worth = [sum(blocks[s.block].worth for s in route) for route in Program(steps, blocks).propose(WIDE)]
    assert worth == sorted(worth, reverse=True)
    pairs = [(a, b) for a, b in itertools.product((0, 2, 4), (1, 3, 5)) if not (a == 4 and b != 5)]
    assert len(worth) == len(pairs), "no convolutions behind tokens"


def test_groups_are_taken_once_each() -> None:
    zoo = small.zoo(small.resnet(1), small.resnet(2))
    blocks = halves(zoo)
    crossed = [Block(b.name, b.stage, 1 - b.group if b.name.startswith("b") else b.group, b.nodes, b.worth) for b in blocks]
    found = list(Program(lay_out(zoo, crossed, (3, 32, 32), 3), crossed).propose(WIDE))
    assert sorted(crossed[route[0].block].name[0] + crossed[route[1].block].name[0] for route in found) == ["aa", "bb"]


def test_limits_that_nothing_keeps_are_told_with_what_would() -> None:
    zoo = three()
    blocks = halves(zoo)
    steps = lay_out(zoo, blocks, (3, 32, 32), 3)
    every = [totals(route) for route in Program(steps, blocks).propose(WIDE)]
    with pytest.raises(Unfit) as said:
        search(Program(steps, blocks), Limits(1e-3, 1e-6), lambda route: 0.0, 10)
    assert f"the smallest has {min(p for p, _ in every) / 1e6:.4g} M" in str(said.value)
    assert f"quickest needs {min(f for _, f in every) / 1e9:.4g} G" in str(said.value)
    for search_by in ("integer", "greedy"):
        with pytest.raises(Unfit, match="0.001 M parameters"):
            attached(three(), params=0.001, search=search_by)
    with pytest.raises(Unfit, match="does not keep the limits"):
        attached(three(), params=0.001, assembly=["a[0:2]", "b[1:3]"])


@pytest.mark.parametrize("search_by", ["integer", "greedy"])
def test_the_whole_search_keeps_its_limits_and_repeats(search_by: str) -> None:
    found = [attached(three(), search=search_by, similarity=kind, params=0.05) for kind in ("cka", "cka", "rbf")]
    said = [at.about["measured"] for at in found]
    assert said[0] == said[1] and all(one["parameters"] <= 50_000 and len(one["blocks"]) == 2 for one in said)
    assert np.isfinite(said[0]["score"]) and said[0]["scored"] >= 1


@pytest.mark.parametrize(("assembly", "error", "said"), [
    (["d[0:2]"], NoSuchSetting, r"'d\[0:2\]' names no piece.*Known: a, b, c"), (["a[0:9]"], NoSuchSetting, r"has \[0:4\]"),
    (["a[2:2]"], NoSuchSetting, "names no blocks"),
    (["a[0:2]", "a[1:3]"], NoSuchSetting, r"'a\[1:3\]' and 'a\[0:2\]' have blocks"), (["a"], NoSuchSetting, "names no piece"),
    (["c[0:1]", "a[0:1]"], Unfit, r"'a\[0:1\]' is made of convolutions and cannot follow 'c\[0:1\]'")])
def test_pieces_that_there_are_not(assembly: list[str], error: type[ThriftyError], said: str) -> None:
    zoo = three()
    with pytest.raises(error, match=said):
        attached(zoo, assembly=assembly)
    assert not thrifty.attachments(zoo)


@pytest.mark.parametrize(("setting", "value"), [("blocks", 1), ("params", 0.0), ("search", "best"), ("similarity", "dot"),
                                                ("smoothing", 1.0), ("candidates", 0), ("slack", -0.1), ("least_flops", 2.0)])
def test_settings_without_a_meaning(setting: str, value: Any) -> None:
    with pytest.raises(NoSuchSetting, match=setting.removeprefix("least_")):
        attached(three(), **{setting: value})


def test_without_scipy_or_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unfit, match="at least two"):
        thrifty.attach(three(), thrifty.DeRy(**QUICK), example=EXAMPLE, batches=[])
    for name in [n for n in sys.modules if n.partition(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(Missing, match=r"pip install \"thrifty\[zoo\]\""):
        attached(three())
    assert attached(three(), search="greedy").about["measured"]["scored"] >= 1


def test_labels_are_smoothed() -> None:
    class Classes:
        def inputs(self, model: Any, batch: dict[str, Any]) -> dict[str, Any]:
            return {"pixel_values": batch["pixel_values"]}

    zoo = three()
    at = attached(zoo)
    batch = small.lessons(6, 6)[0]
    found, count = at.method.loss(at, Classes(), zoo, batch)
    said = zoo(batch["pixel_values"])["logits"].log_softmax(1)
    target = torch.full((6, 3), 0.1 / 3).scatter_add(1, batch["labels"][:, None], torch.full((6, 1), 0.9))
    assert count == 6 and torch.allclose(found, -(target * said).sum(1).mean(), atol=1e-6)


def test_saved_and_loaded_on_fresh_models(tmp_path: Path) -> None:
    zoo = three()
    at = attached(zoo, whole=True)
    trained = {n for n, _ in at.named_parameters() if n.startswith("base:")}
    assert trained and all(any(n.startswith(f"base:{path}.") for part in next(
        e for e in at.edits.values() if isinstance(e, Assembled)).nodes for path in part) for n in trained)
    with torch.no_grad():
        for p in at.parameters():
            p.add_(0.01)
    at.save(tmp_path / "adapter")
    fresh = three()
    again = thrifty.load(fresh, tmp_path / "adapter")
    x = small.pictures()
    assert torch.equal(fresh(x)["logits"], zoo(x)["logits"]) and again.about["measured"] == at.about["measured"]


class Taught(Tiny):
    """With more pictures to look at than it is run on."""

    def lessons(self) -> Any:
        yield from small.lessons(8)


@pytest.mark.parametrize("promise", [p for p in PROMISES if p is not contract.routes_rows], ids=lambda p: p.__name__)
def test_promises(promise: contract.Promise) -> None:
    zoo = small.zoo(small.resnet(1), small.vit(2))
    promise(thrifty.DeRy(**QUICK, assembly=["a[0:2]", "b[2:4]"]), Taught("a zoo", zoo, EXAMPLE))

"""VLN-PETL: counts, both boosters by hand, what each step may see, the stopped gradients, and the contract on an agent."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backbones import count, shake
from torch import Tensor

import thrifty
from thrifty.core.errors import DeadEdit, NoSuchSetting, NothingTrains
from thrifty.methods.branches.boosters import CrossBooster, HistoryBooster
from thrifty.methods.vln_petl import VLNPETL
from thrifty.navigation import Agent, AgentConfig
from thrifty.testing import PROMISES, contract
from thrifty.testing.stock import AGENT, read_options
from thrifty.testing.tiny import Tiny

FIXED = {**AGENT, "fixed_language": True, "fixed_history": True, "panorama_layers": 2, "dropout": 0.0, "feature_dropout": 0.0}
DEAF = {"language_attends": False, "action": "alone"}


def agent(**changes: Any) -> Agent:
    torch.manual_seed(0)
    made = Agent(AgentConfig(**{**FIXED, **changes})).double().eval()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return made


def walk(model: Agent) -> dict[str, Tensor]:
    return {name: t.double() if t.is_floating_point() else t for name, t in model.example().items()}


def put(model: Agent, **settings: Any) -> Any:
    return thrifty.attach(model, VLNPETL(**{"rank": 4, **settings}), example=walk(model))


def edits(at: Any, kind: type) -> list[Any]:
    return [edit for edit in at.edits.values() if isinstance(edit, kind)]


def mha(glance: Any, a: Tensor, b: Tensor, heads: int) -> Tensor:
    """Attention of a [T, r] to b [S, r]."""
    q, k, v = (f(t).view(len(t), heads, -1).transpose(0, 1) for f, t in ((glance.q, a), (glance.k, b), (glance.v, b)))
    share = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
    return glance.o((share @ v).transpose(0, 1).flatten(1))


def test_counts() -> None:
    with torch.device("meta"):
        model = Agent()
    at = thrifty.attach(model, VLNPETL(), check=False)

    def part(name: str) -> int:
        return sum(p.numel() for n, p in at.named_parameters() if f"#{name}:" in n)

    booster, adapter = 98_304 + 16_640 + 832, 2 * 768 * 64 + 64 + 768
    assert part("history-booster") == booster == 115_776
    assert part("cross-booster") == 4 * 2 * booster
    assert part("bottleneck") == 9 * adapter == 892_224
    assert part("low-rank") == 2 * (9 + 4 * 3) * 8 * 2 * 768
    norms = 1 + 9 * 2 + 2 * 2 + 4 * 5 + 3 * 2 + 2  # words; layers; panoramas; cross layers; what is seen, thrice; options, history
    head = 768 * 768 + 768 + 2 * 768 + 768 + 1
    assert count(at) == 9 * booster + 9 * adapter + part("low-rank") + norms * 2 * 768 + head
    with torch.device("meta"):
        model = Agent(AgentConfig(**DEAF))
    at = thrifty.attach(model, VLNPETL(history="layers", adapters="both"), check=False)
    assert part("history-booster") == 2 * booster and part("bottleneck") == 18 * adapter
    assert part("cross-booster") == 4 * (booster + 768 * 64 + 64)  # one direction, which needs both D
    assert part("low-rank") == 2 * (9 + 4 * 3 - 1) * 8 * 2 * 768  # nobody hears the language of the last layer


@pytest.mark.parametrize("changes", [{}, DEAF])
@pytest.mark.parametrize("settings", [{}, {"history": "layers", "adapters": "both", "heads": 2}])
def test_starts_as_the_agent(changes: dict[str, Any], settings: dict[str, Any]) -> None:
    model = agent(**changes)
    before = model(**walk(model))
    at = put(model, **settings)
    assert torch.equal(model(**walk(model)), before)
    shake(at)
    assert not torch.allclose(model(**walk(model)), before)


def test_the_history_booster_by_hand() -> None:
    model = agent()
    given = {name: t for name, t in walk(model).items() if name.startswith("past")}
    at = put(model, norms=False)
    shake(at)
    (edit,) = edits(at, HistoryBooster)
    found = model.history(*given.values())
    at.disable(lambda row: row.edit == "history-booster")
    x = model.history(*given.values())
    for t in range(3):
        a, p = edit.down(x[1, t : t + 1]), edit.down(x[1, :t])
        b = mha(edit.glance, a, torch.cat([p, a]), 4)
        wanted = x[1, t] + edit.raised.up(F.gelu(b))[0]
        torch.testing.assert_close(found[1, t], wanted)


def test_history_boosters_in_layers_by_hand() -> None:
    """Every view looks back at itself; the first layer, whose input nothing has changed yet."""
    model = agent(panorama_layers=1)
    given = walk(model)
    at = put(model, history="layers", norms=False)
    shake(at)
    (edit,) = edits(at, HistoryBooster)
    heard: list[Tensor] = []
    model.history.panorama.layer[0].register_forward_hook(lambda m, args, y: heard.append(y))
    model(**given)
    at.disable(lambda row: row.edit == "history-booster")
    model(**given)
    y, x = (t.view(2, 3, 36, 16) for t in heard)
    for t, view in ((0, 0), (2, 35)):
        a = edit.down(x[1, : t + 1, view])
        wanted = x[1, t, view] + edit.raised.up(F.gelu(mha(edit.glance, a[t:], a, 4)))[0]
        torch.testing.assert_close(y[1, t, view], wanted)
    at.enable(where=lambda row: row.edit == "history-booster")
    at.disable(lambda row: row.edit == "walk-steps")
    at.context.taps.clear()
    with pytest.raises(DeadEdit, match="history.panorama.layer.0"):
        model(**given)


@pytest.mark.parametrize("history", ["token", "layers"])
def test_no_step_sees_a_later_one(history: str) -> None:
    model = agent()
    given = walk(model)
    shake(put(model, history=history))
    before = model.remember(*(given[f"past_{n}"] for n in ("images", "angles", "views", "view_angles")))
    for name in ("past_images", "past_angles", "past_views", "past_view_angles"):
        given[name][:, 2] += 1
    after = model.remember(*(given[f"past_{n}"] for n in ("images", "angles", "views", "view_angles")))
    assert torch.equal(before[:, :3], after[:, :3]) and not torch.allclose(before[:, 3], after[:, 3])
    given["past_views"][:, 0] += 1
    moved = model.remember(*(given[f"past_{n}"] for n in ("images", "angles", "views", "view_angles")))
    assert not torch.allclose(moved[:, 3], after[:, 3])  # but each sees all earlier ones


def test_earlier_steps_get_no_gradient_from_later_ones() -> None:
    model = agent()
    at = put(model)
    shake(at)
    (edit,) = edits(at, HistoryBooster)
    x = torch.randn(1, 3, 16, dtype=torch.float64, requires_grad=True)
    edit(x, x)[:, 2].sum().backward()
    assert x.grad is not None and not x.grad[:, :2].any() and x.grad[:, 2].all()


@pytest.mark.parametrize("changes", [{}, DEAF])
def test_the_cross_booster_by_hand(changes: dict[str, Any]) -> None:
    model = agent(**changes)
    at = put(model, lora_rank=0, norms=False)
    shake(at)
    edit, layer = edits(at, CrossBooster)[0], model.cross.layer[0]
    v, w = torch.randn(2, 5, 16, dtype=torch.float64), torch.randn(2, 3, 16, dtype=torch.float64)
    masks = torch.zeros(2, 1, 1, 5, dtype=torch.float64), torch.tensor([[0, 0, 0], [0, 0, -1e4]]).double()[:, None, None]
    seen, heard = layer(v, masks[0], w, masks[1])
    at.disable(lambda row: row.edit == "cross-booster")
    plain, said = layer(v, masks[0], w, masks[1])
    for row, words in ((0, 3), (1, 2)):
        a, b = edit.down_vision(plain[row]), edit.down_language(said[row, :words])
        torch.testing.assert_close(seen[row], plain[row] + edit.raise_vision.up(F.gelu(mha(edit.to_vision, a, b, 4))))
        if edit.both:
            change = edit.raise_language.up(F.gelu(mha(edit.to_language, b, a, 4)))
            torch.testing.assert_close(heard[row, :words], said[row, :words] + change)
        else:
            assert torch.equal(heard, said)


def test_a_stream_of_which_nothing_is_seen_adds_nothing() -> None:
    model = agent()
    at = put(model, lora_rank=0, norms=False)
    shake(at)
    layer = model.cross.layer[0]
    v, w = torch.randn(2, 5, 16, dtype=torch.float64), torch.randn(2, 3, 16, dtype=torch.float64)
    masks = torch.zeros(2, 1, 1, 5).double(), torch.tensor([[0.0] * 3, [-1e4] * 3]).double()[:, None, None]
    seen, _ = layer(v, masks[0], w, masks[1])
    at.disable()
    plain, _ = layer(v, masks[0], w, masks[1])
    assert seen.isfinite().all() and torch.equal(seen[1], plain[1]) and not torch.allclose(seen[0], plain[0])


def test_every_edit_gets_a_gradient_through_the_agents_stops() -> None:
    """But the bias of keys, which moves all logits of a softmax alike."""
    for changes, settings in (({}, {}), ({}, {"history": "layers", "adapters": "both"}), (DEAF, {}), ({"action": "history"}, {})):
        model = agent(**changes)
        at = put(model, **settings)
        optimiser = torch.optim.SGD(at.parameters(), lr=0.1)
        for _ in range(2):
            optimiser.zero_grad()
            read_options(model(**walk(model))).square().sum().backward()
            optimiser.step()
        for name, p in at.named_parameters():
            if name.startswith("edit:") and not name.endswith(".k.bias"):
                assert p.grad is not None and p.grad.abs().max() > 0, name
        frozen = [n for n, p in model.named_parameters() if p.grad is not None and not p.requires_grad]
        assert not frozen
    at.detach()
    read_options(model(**walk(model))).sum()
    assert not model.language_out(torch.ones(1, requires_grad=True)).requires_grad


def test_other_methods_are_told_of_the_stops() -> None:
    model = agent()
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="attn.q[0:1]"), example=walk(model))
    with pytest.raises(NothingTrains, match="language.layer.0"):
        for _ in range(4):
            read_options(model(**walk(model))).sum().backward()
    assert at is not None


@pytest.mark.parametrize("promise", [p for p in PROMISES if p is not contract.routes_rows], ids=lambda p: p.__name__)
@pytest.mark.parametrize("settings", [{}, {"history": "layers", "adapters": "both", "act": "tanh"}], ids=["token", "layers"])
def test_the_contract(promise: contract.Promise, settings: dict[str, Any]) -> None:
    if promise is contract.compiles and settings:
        pytest.skip("made of the same parts")
    model = agent().float()
    promise(VLNPETL(rank=4, **settings), Tiny("an agent", model, model.example(), read_options))


def test_saved(tmp_path: Path) -> None:
    for number, settings in enumerate(({}, {"history": "layers"})):
        model = agent(**(DEAF if number else {}))
        at = put(model, **settings)
        shake(at, 0.1)
        at.save(tmp_path / str(number))
        fresh = agent(**(DEAF if number else {}))
        thrifty.load(fresh, tmp_path / str(number), example=walk(fresh))
        assert torch.equal(fresh(**walk(fresh)), model(**walk(model)))


def test_parts_may_be_left_out() -> None:
    at = put(agent(), adapters="none", lora_rank=0, history="none", norms=False, head=False)
    assert {row.edit for row in at.plan} == {"cross-booster"}
    assert len(put(agent(), cross=False, history="none").plan) == 2 + 2 * (2 + 2 * 3) + 2  # adapters, LoRA, both stops


@pytest.mark.parametrize(("setting", "value"), [("rank", 0), ("heads", 3), ("heads", -1), ("act", "sin"), ("adapters", "all"),
                                                ("history", "step"), ("lora_rank", -1)])
def test_refusals(setting: str, value: Any) -> None:
    with pytest.raises(NoSuchSetting, match=setting):
        put(agent(), **{setting: value})

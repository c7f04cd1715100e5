"""What would be adapted only in part, or not at all, is refused by name; and so is what never gets a gradient."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import thrifty
from thrifty.core import Attachment
from thrifty.core.errors import (
    BrokenArtifact,
    DeadEdit,
    FrozenMoved,
    HalfAdapted,
    NoSuchSetting,
    NoSuchSite,
    NothingTrains,
    ThriftyError,
)
from thrifty.core.ledger import refuse_moved, snapshot
from thrifty.testing import tiny
from thrifty.testing.measuring import distance, loss, put, stir


def _untouched(model: nn.Module) -> None:
    assert not thrifty.attachments(model)
    assert all(p.requires_grad for p in model.parameters())
    assert not any("edits" in n.split(".") for n, _ in model.named_modules())


def test_expert_tensors_cannot_be_adapted_in_passing() -> None:
    model = tiny.make("mixtral").fresh()
    with pytest.raises(NoSuchSite, match=r"expert tensors \('model\.layers\.0\.mlp\.experts'\)"):
        thrifty.attach(model, thrifty.LoRA(where="mlp.*"))
    with pytest.raises(NoSuchSite, match="expert tensors"):
        thrifty.attach(model, thrifty.LoRA(where="attn.?|mlp.in"))
    _untouched(model)
    thrifty.attach(model, thrifty.LoRA(where="attn.?"))


def test_a_shared_expert_beside_expert_tensors() -> None:
    model = tiny.make("qwen2_moe").fresh()
    with pytest.raises(HalfAdapted, match=r"2 expert tensors .*gate_up_proj.*\|!experts"):
        thrifty.attach(model, thrifty.LoRA(where="mlp.*"))
    _untouched(model)
    at = thrifty.attach(model, thrifty.LoRA(where="mlp.*|!experts"))
    assert {r.path.split("mlp.")[1] for r in at.plan} == {f"shared_expert.{n}_proj" for n in ("gate", "up", "down")}


def test_tied_weights() -> None:
    backbone = tiny.make("gpt2")
    model = backbone.fresh()
    assert model.lm_head.weight is model.transformer.wte.weight
    with pytest.raises(HalfAdapted, match=r"transformer\.wte\.weight is tied to \['lm_head\.weight'\].*tied='leave'"):
        thrifty.attach(model, thrifty.LoRA(where="embed"))
    with pytest.raises(HalfAdapted, match="wte"):
        thrifty.attach(model, thrifty.LoRA(where="attn.q"), also_train="head")
    _untouched(model)
    at = thrifty.attach(model, thrifty.LoRA(where="embed"), tied="leave", example=backbone.example)
    assert [r.path for r in at.plan] == ["transformer.wte"]
    stir(at)
    assert distance(backbone.output(model), backbone.output(backbone.fresh())) > 1e-4
    at.detach()
    thrifty.attach(model, thrifty.LoRA(where="embed|head"), example=backbone.example)


class Twice(nn.Module):
    """One module mounted at two paths."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)))


def test_a_module_mounted_at_two_paths() -> None:
    model, x = Twice(), torch.randn(3, 4)
    with pytest.raises(HalfAdapted, match=r"'first', which is the same module as \['second'\]"):
        thrifty.attach(model, thrifty.LoRA(rank=2, where="first"), example=x)
    _untouched(model)
    base = model(x)
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="first|second"), example=x)
    assert len(at.edits) == 1
    stir(at)
    edit = next(iter(at.edits.values()))
    weight = model.first.weight + edit.scale * edit.B @ edit.A
    wanted = model.head((x @ weight.T + model.first.bias) @ weight.T + model.first.bias)
    torch.testing.assert_close(model(x), wanted)
    at.merge()
    torch.testing.assert_close(model(x), wanted)
    at.detach()
    assert torch.equal(model(x), base)


@pytest.mark.parametrize(("where", "said"), [
    ("atn.q", "Did you mean 'attn.q'"), ("attn.q|atn.v", "'atn.v' in 'attn.q|atn.v'"),
    ("bert.encoder.layer.9.*", "no site matches"), ("attn.q[7]", "no site matches"),
    ("attn.q[", "cannot read"), ("attn.q|!attn.q", "leaves no site"), ("", "cannot read")])
def test_targets_that_match_nothing(where: str, said: str) -> None:
    model = tiny.make("bert").fresh()
    with pytest.raises(NoSuchSite) as caught:
        thrifty.attach(model, thrifty.LoRA(where=where))
    assert said in str(caught.value)
    _untouched(model)


@pytest.mark.parametrize("also", ["hed", "classifier.weigth", "head|hed", "after.attn"])
def test_modules_to_train_that_match_nothing(also: str) -> None:
    model = tiny.make("bert").fresh()
    with pytest.raises(NoSuchSite):
        thrifty.attach(model, thrifty.LoRA(), also_train=also)
    _untouched(model)


def test_settings_that_do_not_exist() -> None:
    with pytest.raises(NoSuchSetting, match="Did you mean 'rank'"):
        thrifty.LoRA.make(rnak=4)
    with pytest.raises(NoSuchSetting, match="rank must be at least 1"):
        thrifty.attach(tiny.make("bert").fresh(), thrifty.LoRA(rank=0))


def test_a_name_is_used_once() -> None:
    model = tiny.make("bert").fresh()
    thrifty.attach(model, thrifty.LoRA())
    with pytest.raises(ThriftyError, match="'default' is on this model already"):
        thrifty.attach(model, thrifty.LoRA())
    assert list(thrifty.attachments(model)) == ["default"]
    with pytest.raises(ThriftyError, match="letters, digits"):
        thrifty.attach(model, thrifty.LoRA(), name="../up")


class Lazy(nn.Module):
    """Has a layer that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_an_edit_that_is_never_reached() -> None:
    model, x = Lazy(), torch.randn(2, 4)
    with pytest.raises(DeadEdit, match=r"1 of 2 edits .*'idle#low-rank'"):
        thrifty.attach(model, thrifty.LoRA(rank=2, where="linear"), example=x)
    _untouched(model)
    thrifty.attach(model, thrifty.LoRA(rank=2, where="used"), example=x)


def test_a_tensor_without_gradient_stops_a_plain_loop_in_its_third_backward_pass() -> None:
    model, x = Lazy(), torch.randn(2, 4)
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="linear"), example=x, check=False)
    optimiser = torch.optim.SGD(at.parameters(), lr=0.1)
    for step in range(3):
        optimiser.zero_grad()
        if step < 2:
            model(x).sum().backward()
            optimiser.step()
    with pytest.raises(NothingTrains, match="idle#low-rank"):
        model(x).sum().backward()


class Freezing(thrifty.LoRA):
    """A method that freezes, while it is attached, what was asked to train beside it."""

    def attach(self, at: Attachment, batches: object = None) -> None:
        super().attach(at)
        for name in at.base:
            at.model.get_parameter(name).requires_grad_(False)


def test_what_is_to_train_and_was_frozen_meanwhile() -> None:
    model, x = Lazy(), torch.randn(2, 4)
    with pytest.raises(NothingTrains, match=r"'base:used.bias' is to train, but something froze it while Freezing"):
        thrifty.attach(model, Freezing(rank=2, where="linear"), also_train="used.bias", example=x, check=False)
    _untouched(model)


def test_of_all_weights_some_may_never_be_reached() -> None:
    model, x = Lazy(), torch.randn(2, 4)
    at = thrifty.attach(model, thrifty.methods.find("full").make(), example=x)
    for _ in range(3):
        model(x).sum().backward()
    assert at.watch is not None and sorted(at.watch.unreached) == ["base:idle.bias", "base:idle.weight"]


def test_the_watch_leaves_a_healthy_loop_alone() -> None:
    backbone = tiny.make("bert")
    model, at = put(thrifty.LoRA(rank=2), backbone)
    for _ in range(4):
        loss(backbone, model).backward()
    assert at.watch is not None and not at.watch.handles


def test_an_edit_that_is_switched_off_needs_no_gradient() -> None:
    backbone = tiny.make("bert")
    model, at = put(thrifty.LoRA(rank=2), backbone)
    at.disable(lambda row: row.depth == 0)
    for _ in range(4):
        loss(backbone, model).backward()


def test_a_frozen_tensor_that_moved_is_named() -> None:
    backbone = tiny.make("bert")
    model, _ = put(thrifty.LoRA(rank=2), backbone)
    before = snapshot(model)
    refuse_moved(model, before)
    with torch.no_grad():
        model.bert.pooler.dense.bias[3] += 1e-6
    with pytest.raises(FrozenMoved, match=r"bert\.pooler\.dense\.bias"):
        refuse_moved(model, before)


def test_load_state_refuses_and_changes_nothing() -> None:
    backbone = tiny.make("bert")
    model, at = put(thrifty.LoRA(rank=2), backbone)
    stir(at)
    before, state = backbone.output(model), at.state()
    first = next(iter(state))
    short = {k: v for k, v in state.items() if k != first}
    for broken, said in ((short, "missing"), ({**state, "edit:nobody": torch.ones(1)}, "unexpected"),
                         ({**state, first: torch.ones(1)}, "shape")):
        with pytest.raises(BrokenArtifact, match=said):
            at.load_state({k: v + 1 if v.is_floating_point() else v for k, v in broken.items()})
        assert torch.equal(backbone.output(model), before)


def test_own_attribute_called_edits() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].edits = [1, 2]
    with pytest.raises(ThriftyError, match="own attribute 'edits'"):
        thrifty.attach(model, thrifty.LoRA(rank=2, where="0"), example=torch.randn(1, 4))
    assert model[0].edits == [1, 2]

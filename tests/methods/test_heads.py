"""A head for each task beside any method: its equation, its start, what it makes idle, and what it cannot be."""
from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import thrifty
from thrifty.core import Attachment
from thrifty.core.errors import CannotMerge, NoSuchSetting, ThriftyError, Unfit, WrongBase
from thrifty.core.routing import tell
from thrifty.methods.heads import Heads, heads, last_linear
from thrifty.testing import tiny

TASKS = ["one", "two", "three"]
WIDTHS = (2, 3, 1)


def put(model: nn.Module, example: object, method: thrifty.Method | None = None, seed: int = 0) -> Attachment:
    return thrifty.attach(model, method or thrifty.LoRA(), example=example, tasks=TASKS, beside=heads(*WIDTHS), seed=seed)


def of(at: Attachment) -> Heads:
    (found,) = (edit for edit in at.edits.values() if isinstance(edit, Heads))
    return found


def entering(model: nn.Module, path: str, run: object) -> Tensor:
    """What enters the module at ``path``."""
    held: list[Tensor] = []
    hook = model.get_submodule(path).register_forward_pre_hook(lambda _, args: held.append(args[0]))
    try:
        run()  # type: ignore[operator]
    finally:
        hook.remove()
    return held[0].detach()


@pytest.mark.parametrize(("name", "path"), [("bert", "classifier"), ("vit", "classifier"), ("resnet", "fc")])
def test_the_answer_is_that_of_the_tasks_own_layer(name: str, path: str) -> None:
    backbone = tiny.make(name)
    model = backbone.fresh()
    if path not in dict(model.named_modules()):
        path = last_linear(model, backbone.example)
    assert last_linear(model, backbone.example) == path
    at = put(model, backbone.example, thrifty.LoRA(where="conv" if name == "resnet" else "attn.q"))
    for number, (task, width) in enumerate(zip(TASKS, WIDTHS, strict=True)):
        with thrifty.task(model, task):
            found = backbone.output(model)
            x = entering(model, path, lambda: backbone.output(model))
        head = of(at).heads[number]
        assert found.shape[-1] == width
        torch.testing.assert_close(found, (F.linear(x, head.weight, head.bias)).detach())


def test_heads_start_as_wide_as_the_models_own_and_from_the_seed() -> None:
    backbone = tiny.make("bert")
    model = backbone.fresh()
    own = model.get_parameter("classifier.weight").detach().clone()
    wide = thrifty.attach(model, thrifty.LoRA(), example=backbone.example, tasks=["a"], beside=heads(2000))
    head = of(wide).heads[0]
    assert float(head.weight.square().mean().sqrt()) == pytest.approx(float(own.square().mean().sqrt()), rel=0.03)
    assert float(head.weight.mean().abs()) < 0.02 and not head.bias.any()
    weights = []
    for seed in (0, 0, 1):
        weights.append(of(put(backbone.fresh(), backbone.example, seed=seed)).heads[1].weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_only_the_head_of_the_batchs_task_gets_a_gradient() -> None:
    backbone = tiny.make("bert")
    model = backbone.fresh()
    at = put(model, backbone.example)
    tell(model, "two")
    backbone.logits(backbone.run(model)).sum().backward()
    reached = {name for name, p in at.named_parameters() if p.grad is not None}
    own = {f"edit:{key}:{name}" for key, edit in at.edits.items() if isinstance(edit, Heads) for name, _ in edit.named_parameters()}
    assert {name for name in own if ":heads.1." in name} == own & reached
    assert all(name in reached for name, _ in at.named_parameters() if name not in own)
    for task in (*TASKS, *TASKS):  # and nobody complains that others have none
        tell(model, task)
        backbone.logits(backbone.run(model)).sum().backward()


def test_without_heads_the_model_is_itself_again() -> None:
    backbone = tiny.make("bert")
    model = backbone.fresh()
    before = backbone.output(model)
    at = put(model, backbone.example)
    with at.disabled():
        assert torch.equal(backbone.output(model), before)
    at.detach()
    assert torch.equal(backbone.output(model), before) and list(model.state_dict()) == list(backbone.model.state_dict())


def test_the_layer_that_nobody_reads_neither_trains_nor_identifies_the_base(tmp_path: Path) -> None:
    """Whatever head the base was loaded with, of whatever width, the adapter is the same; any other weight still counts."""
    backbone = tiny.make("bert")
    model = backbone.fresh()
    at = thrifty.attach(model, thrifty.LoRA(), example=backbone.example, tasks=TASKS, also_train="head", beside=heads(*WIDTHS))
    assert not at.base and not model.get_parameter("classifier.weight").requires_grad
    with torch.no_grad():
        for p in at.parameters():
            p.normal_()
    tell(model, "two")
    wanted = backbone.output(model)
    at.save(tmp_path / "adapter")
    other = backbone.fresh()
    other.classifier = nn.Linear(other.classifier.in_features, 7)
    again = thrifty.load(other, tmp_path / "adapter", example=backbone.example)
    assert again.tasks == TASKS
    with thrifty.task(other, "two"):
        assert torch.equal(backbone.output(other), wanted)
    stranger = backbone.fresh()
    with torch.no_grad():
        next(p for n, p in stranger.named_parameters() if "query" in n).add_(1)
    with pytest.raises(WrongBase):
        thrifty.load(stranger, tmp_path / "adapter", example=backbone.example)


@pytest.mark.parametrize("method", [
    thrifty.LinearProbe(), thrifty.FullFineTuning(), thrifty.BitFit(), thrifty.PromptTuning(length=2),
    thrifty.PrefixTuning(length=2), thrifty.IA3(), thrifty.Houlsby(rank=2)])
def test_beside_methods_of_every_route(method: thrifty.Method, tmp_path: Path) -> None:
    backbone = tiny.make("bert")
    model = backbone.fresh()
    at = put(model, backbone.example, method)
    assert not any(name.startswith("classifier.") for name in at.base)
    for task, width in zip(TASKS, WIDTHS, strict=True):
        with thrifty.task(model, task):
            found = backbone.logits(backbone.run(model))
            assert found.shape[-1] == width
            found.square().sum().backward()
    assert all(p.grad is not None for p in of(at).parameters())
    with torch.no_grad():
        for p in of(at).parameters():
            p.add_(1)
    at.save(tmp_path / "adapter")
    other = backbone.fresh()
    thrifty.load(other, tmp_path / "adapter", example=backbone.example)
    for held in (model, other):
        tell(held, "three")
    torch.testing.assert_close(backbone.output(other), backbone.output(model))


def test_a_copy_has_heads_of_its_own() -> None:
    backbone = tiny.make("bert")
    model = backbone.fresh()
    put(model, backbone.example)
    twin = copy.deepcopy(model)
    tell(twin, "one")
    found = backbone.output(twin)
    with torch.no_grad():
        for p in of(thrifty.attachments(model)["default"]).parameters():
            p.zero_()
    assert torch.equal(backbone.output(twin), found)


def test_what_heads_cannot_be() -> None:
    backbone = tiny.make("bert")
    for widths in ((2, 3), (2, 3, 0), ()):
        with pytest.raises(NoSuchSetting, match="number of outputs of every task"):
            thrifty.attach(backbone.fresh(), thrifty.LoRA(), example=backbone.example, tasks=TASKS, beside=heads(*widths))
    with pytest.raises(Unfit, match="'low-rank' acts on 'classifier'"):
        put(backbone.fresh(), backbone.example, thrifty.LoRA(where="attn.q|head"))
    model = backbone.fresh()
    at = put(model, backbone.example)
    with pytest.raises(ThriftyError, match="say which"):
        backbone.run(model)
    with pytest.raises(ThriftyError, match="a batch belongs to one task"), thrifty.task(model, ["one", "two"]):
        backbone.run(model)
    with pytest.raises(CannotMerge, match="a head for each of 3 tasks"):
        at.merge()
    ends = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv1d(4, 3, 1))
    with pytest.raises(Unfit, match="does not end in a linear layer"):
        thrifty.attach(ends, thrifty.LoRA(where="0"), example=torch.randn(2, 4, 4), tasks=["a"], beside=heads(2))


def test_on_the_meta_device_they_are_counted() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="0"), example=torch.zeros(1, 8, device="meta"), tasks=["a", "b"],
                        beside=heads(3, 5))
    assert at.summary().trainable == 2 * (8 + 16) + (16 + 1) * (3 + 5)

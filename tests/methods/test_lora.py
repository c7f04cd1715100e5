"""LoRA, rsLoRA and LoRA+: reference arrays, published counts, and what their equations promise."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from backbones import IDS, count, frozen_stay, golden, published, run, shake, tiny
from torch import nn

import thrifty
from thrifty.core.errors import NoSuchSetting, Unfit
from thrifty.methods import make


def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Sequential:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=weight.dtype)
    layer.load_state_dict({"weight": weight} | ({"bias": bias} if bias is not None else {}))
    return nn.Sequential(layer)


def put(at: thrifty.Attachment, **tensors: torch.Tensor) -> None:
    (edit,) = at.edits.values()
    with torch.no_grad():
        for name, value in tensors.items():
            getattr(edit, name).copy_(value)


def test_reference_arrays() -> None:
    g = golden("nlp_lora")
    model = linear(g["w/weight"], g["w/bias"])
    at = thrifty.attach(model, thrifty.LoRA(rank=g["hp/r"], alpha=g["hp/alpha"], where="0"))
    put(at, A=g["w/lora_A"], B=g["w/lora_B"])
    y = model(g["in/x"])
    torch.testing.assert_close(y, g["out/unmerged"], atol=1e-10, rtol=0)
    (y * g["in/probe"]).sum().backward()
    (edit,) = at.edits.values()
    torch.testing.assert_close(edit.A.grad, g["grad/lora_A"], atol=1e-10, rtol=0)
    torch.testing.assert_close(edit.B.grad, g["grad/lora_B"], atol=1e-10, rtol=0)
    at.merge()
    torch.testing.assert_close(model[0].weight.detach(), g["out/merged_weight"], atol=1e-10, rtol=0)
    torch.testing.assert_close(model(g["in/x"]).detach(), g["out/merged"], atol=1e-10, rtol=0)


@pytest.mark.parametrize(("backbone", "rank", "where", "published_count"), [
    ("bert-base", 4, "attn.q|attn.v", 147_456), ("bert-base", 8, "attn.q|attn.v", 294_912),
    ("bert-base", 16, "attn.q|attn.v", 589_824), ("t5-base", 4, "attn.q|attn.v", 442_368),
    ("t5-base", 8, "attn.q|attn.v", 884_736), ("t5-base", 16, "attn.q|attn.v", 1_769_472),
    ("llama-7b", 8, "attn.q|attn.v", 4_194_304), ("llama-7b", 16, "attn.?|mlp.in|mlp.gate|mlp.out", 39_976_960),
    ("llama-7b", 64, "attn.?|mlp.in|mlp.gate|mlp.out", 159_907_840)])
def test_counts(backbone: str, rank: int, where: str, published_count: int) -> None:
    at = thrifty.attach(published(backbone), thrifty.LoRA(rank=rank, where=where))
    assert count(at) == published_count


def test_starts_as_the_base_and_freezes_it() -> None:
    model = tiny("bert")
    base = run(model)
    at = thrifty.attach(model, thrifty.LoRA(rank=2))
    assert torch.equal(run(model), base)
    moved = frozen_stay(model, at)
    assert {n.rpartition(".")[2] for n in moved} == {"A", "B"} and len(moved) == 8


def test_the_first_gradient_of_A_is_zero_because_B_is() -> None:
    model = tiny("bert")
    at = thrifty.attach(model, thrifty.LoRA(rank=2))
    run(model).sum().backward()
    for edit in at.edits.values():
        assert not edit.A.grad.any() and edit.B.grad.any()


def test_change_has_the_rank_and_merges_exactly() -> None:
    model = tiny("bert").double()
    before = model.bert.encoder.layer[0].attention.self.query.weight.clone()
    at = thrifty.attach(model, thrifty.LoRA(rank=3))
    shake(at)
    y = run(model)
    at.merge()
    torch.testing.assert_close(run(model), y, atol=1e-12, rtol=0)
    change = model.bert.encoder.layer[0].attention.self.query.weight.detach() - before
    singular = torch.linalg.svdvals(change)
    assert singular[2] > 1e-3 and singular[3:].max() < 1e-12
    at.unmerge()
    assert torch.equal(model.bert.encoder.layer[0].attention.self.query.weight, before)


def test_scalings() -> None:
    x = torch.randn(4, 16, dtype=torch.float64)
    weight = torch.randn(6, 16, dtype=torch.float64)
    A, B = torch.randn(4, 16, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)

    def change(A: torch.Tensor, B: torch.Tensor, **settings: object) -> torch.Tensor:
        model = linear(weight, None)
        put(thrifty.attach(model, thrifty.LoRA(rank=len(A), where="0", **settings)), A=A, B=B)
        return model(x) - x @ weight.T

    torch.testing.assert_close(change(A, B, alpha=16.0), change(A, 2 * B, alpha=8.0))
    torch.testing.assert_close(change(3 * A, B / 3), change(A, B))
    torch.testing.assert_close(change(A, B, alpha=6.0, stable=True), change(A, B, alpha=6.0 * 4**0.5))
    torch.testing.assert_close(change(A[:1], B[:, :1], stable=True), change(A[:1], B[:, :1]))
    torch.testing.assert_close(change(A, B, alpha=6.0, stable=True), 3.0 * x @ A.T @ B.T)


def test_spread_is_constant_in_the_rank_only_when_stable() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 256)
    spread = {}
    for stable in (False, True):
        for rank in (4, 64):
            A, B = torch.randn(rank, 256) / 16, torch.randn(256, rank)
            model = linear(torch.zeros(256, 256), None)
            put(thrifty.attach(model, thrifty.LoRA(rank=rank, alpha=8.0, stable=stable, where="0")), A=A, B=B)
            spread[stable, rank] = float(model(x).std())
    assert spread[True, 4] == pytest.approx(spread[True, 64], rel=0.1)
    assert spread[False, 4] / spread[False, 64] == pytest.approx(4.0, rel=0.1)  # 1 / sqrt(rank)


def test_a_fused_projection_keeps_its_keys_bitwise() -> None:
    model = tiny("gpt2")
    seen = {}
    model.transformer.h[0].attn.c_attn.register_forward_hook(lambda m, a, y: seen.update(last=y.detach().clone()))
    run(model)
    before = seen["last"]
    kept = model.transformer.h[0].attn.c_attn.weight.clone()
    at = thrifty.attach(model, thrifty.LoRA(rank=2))
    shake(at)
    hooked = thrifty.sites(model, "attn.q[0]")[0].module
    y = hooked(torch.ones(1, 16))
    q, k, v = (y - F.linear(torch.ones(1, 16), kept.T, hooked.bias)).split(16, -1)
    assert q.abs().min() > 0 and v.abs().min() > 0 and not k.any()
    q_edit, v_edit = list(at.edits.values())[:2]
    torch.testing.assert_close(q, (q_edit.scale * torch.ones(1, 16) @ q_edit.A.T @ q_edit.B.T))
    out = run(model)
    at.merge()
    assert torch.equal(hooked.weight[:, 16:32], kept[:, 16:32]) and before.shape[-1] == 48
    torch.testing.assert_close(run(model), out, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("conv", [nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Conv2d(4, 6, 3, padding=2, dilation=2),
                                  nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.Conv1d(4, 6, 5, stride=3)])
def test_a_convolution_equals_the_dense_change_of_its_kernel(conv: nn.Module) -> None:
    model = nn.Sequential(conv.double())
    x = torch.randn(2, 4, *(9 for _ in conv.kernel_size), dtype=torch.float64)
    base = model(x)
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="conv"), example=x)
    assert torch.equal(model(x), base)
    shake(at)
    (edit,) = at.edits.values()
    kernel = conv.weight + edit.scale * torch.einsum("or,ri...->oi...", edit.B, edit.A)
    at.disable()
    assert torch.equal(model(x), base)
    dense = torch.func.functional_call(conv, {"weight": kernel, "bias": conv.bias}, (x,))
    at.enable()
    torch.testing.assert_close(model(x), dense)


def test_an_embedding() -> None:
    model = nn.Sequential(nn.Embedding(10, 6))
    base = model(IDS % 10)
    at = thrifty.attach(model, thrifty.LoRA(rank=2, alpha=4.0, where="0"), example=IDS % 10)
    (edit,) = at.edits.values()
    assert not edit.A.any() and edit.B.std() > 0.3 and torch.equal(model(IDS % 10), base)
    shake(at)
    torch.testing.assert_close(model(IDS % 10), base + 2.0 * edit.A.T[IDS % 10] @ edit.B.T)
    y = model(IDS % 10)
    at.merge()
    torch.testing.assert_close(model(IDS % 10), y)


def test_start_values() -> None:
    model = nn.Sequential(nn.Linear(400, 300))
    at = thrifty.attach(model, thrifty.LoRA(rank=64, where="0"))
    (edit,) = at.edits.values()
    assert edit.A.abs().max() <= 400**-0.5 and not edit.B.any()
    assert float(edit.A.std()) == pytest.approx(400**-0.5 / 3**0.5, rel=0.05)


def test_two_adapters_merge_in_any_order() -> None:
    merged = []
    for order in (("a", "b"), ("b", "a")):
        model = tiny("bert").double()
        handles = {n: thrifty.attach(model, thrifty.LoRA(rank=2), n, seed=i) for i, n in enumerate("ab")}
        for at in handles.values():
            shake(at)
        for name in order:
            handles[name].merge()
        merged.append(run(model))
    torch.testing.assert_close(*merged)


def test_dropout_acts_in_training_only() -> None:
    model = tiny("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0)
    at = thrifty.attach(model, thrifty.LoRA(rank=2, dropout=0.5))
    shake(at)
    assert torch.equal(run(model), run(model))
    model.train()
    assert not torch.equal(run(model), run(model))


def test_optimiser_groups_of_lora_plus() -> None:
    model = tiny("bert")
    method = make("lora+", rank=2)
    at = thrifty.attach(model, method, also_train="head")
    groups = method.groups(at, 1e-4, 0.1)
    names = {id(p): n for n, p in at.named_parameters()}
    rate = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(rate) == len(names) == sum(len(g["params"]) for g in groups)
    for name, (lr, decay) in rate.items():
        thin = name.endswith(".bias")
        assert lr == pytest.approx(16e-4 if name.endswith(":B") or thin else 1e-4) and decay == (0.0 if thin else 0.1)


def test_lora_plus_with_ratio_one_is_lora() -> None:
    ends = []
    for method in (thrifty.LoRA(rank=2), thrifty.LoRA(rank=2, ratio=1.0)):
        model = tiny("bert")
        at = thrifty.attach(model, method)
        optimiser = torch.optim.AdamW(method.groups(at, 1e-2, 0.1))
        for _ in range(3):
            optimiser.zero_grad()
            run(model).square().mean().backward()
            optimiser.step()
        ends.append(run(model))
    assert torch.equal(*ends)


def test_refusals() -> None:
    for settings in ({"rank": 0}, {"dropout": 1.0}, {"ratio": 0.0}):
        with pytest.raises(NoSuchSetting, match=next(iter(settings))):
            thrifty.attach(tiny("bert"), thrifty.LoRA(**settings))
    with pytest.raises(NoSuchSetting, match="rank"):
        make("lora", rnak=8)
    with pytest.raises(Unfit, match="groups"):
        thrifty.attach(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), thrifty.LoRA(where="conv"))

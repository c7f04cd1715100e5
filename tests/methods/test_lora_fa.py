"""LoRA-FA: LoRA with A frozen, and what that saves while training, counted in bytes of saved tensors."""
from __future__ import annotations

import pytest
import torch
from backbones import IDS, count, frozen_stay, published, run, shake, tiny
from torch import nn

import thrifty
from thrifty.core.errors import NoSuchSetting


def saved(model: nn.Module, x: torch.Tensor) -> int:
    """Bytes of all activations that one forward pass keeps for the backward pass, each storage once, without parameters."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        y = model(x)
    assert y.requires_grad
    return sum(s.nbytes() for s in kept.values())


def test_x_is_not_kept() -> None:
    """Four linear layers in a row: LoRA keeps every x [32, 64] and every A x [32, 4], LoRA-FA the latter only."""
    bytes_kept = {}
    for method in (thrifty.LoRA, thrifty.LoRAFA):
        model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4))).train()
        thrifty.attach(model, method(rank=4, where="linear"))
        bytes_kept[method] = saved(model, torch.randn(32, 64))
    low, x = 32 * 4 * 4, 32 * 64 * 4
    assert bytes_kept[thrifty.LoRAFA] == 4 * low
    assert bytes_kept[thrifty.LoRA] == 4 * low + 4 * x


def test_a_transformer_keeps_less() -> None:
    model = tiny("llama").train()
    kept = []
    for method in (thrifty.LoRAFA, thrifty.LoRA):
        at = thrifty.attach(model, method(rank=2, where="attn.?|mlp.*"))
        kept.append(saved(_Logits(model), IDS))
        at.detach()
    assert kept[0] < kept[1] - 2 * 4 * 10 * 16  # at least the inputs of o, gate/in, out, and q/k/v in each layer


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids).logits


def test_it_is_lora_with_a_frozen() -> None:
    model = tiny("bert")
    base = run(model)
    at = thrifty.attach(model, thrifty.LoRAFA(rank=2), seed=3)
    assert torch.equal(run(model), base)
    moved = frozen_stay(model, at)
    assert {n.rpartition(".")[2] for n in moved} == {"B"} and len(moved) == 4
    state = at.state()
    assert {n.rpartition(":")[2] for n in state} == {"A", "B"}  # the random A is saved, not drawn again
    y = run(model)
    at.detach()
    lora = thrifty.attach(model, thrifty.LoRA(rank=2), seed=3)
    assert all(torch.equal(lora.state()[n], t) for n, t in ((n.replace("-up", ""), t) for n, t in state.items()) if n.endswith("A"))
    lora.load_state({n.replace("-up", ""): t for n, t in state.items()})
    assert torch.equal(run(model), y)


def test_gradients_of_B_are_those_of_lora() -> None:
    found = []
    for method in (thrifty.LoRA, thrifty.LoRAFA):
        model = tiny("gpt2").double()
        at = thrifty.attach(model, method(rank=2, stable=True))
        run(model).square().sum().backward()
        found.append([e.B.grad for e in at.edits.values()])
        assert all((e.A.grad is None) == (method is thrifty.LoRAFA) for e in at.edits.values())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(("backbone", "rank", "count_of_lora"), [("bert-base", 8, 294_912), ("llama-7b", 16, 8_388_608)])
def test_of_square_layers_half_as_much_trains_as_with_lora(backbone: str, rank: int, count_of_lora: int) -> None:
    assert count(thrifty.attach(published(backbone), thrifty.LoRAFA(rank=rank))) == count_of_lora // 2


def test_of_an_embedding_the_random_half_is_frozen() -> None:
    model = nn.Sequential(nn.Embedding(10, 6))
    at = thrifty.attach(model, thrifty.LoRAFA(rank=2, where="0"), example=IDS % 10)
    (edit,) = at.edits.values()
    assert [n for n, _ in at.named_parameters()] == ["edit:0#low-rank-up:A"] and not edit.A.any() and edit.B.any()
    base = model(IDS % 10)
    shake(at)
    torch.testing.assert_close(model(IDS % 10), base + edit.scale * edit.A.T[IDS % 10] @ edit.B.T)


def test_merges_exactly() -> None:
    model = tiny("gpt2").double()
    base = run(model)
    at = thrifty.attach(model, thrifty.LoRAFA(rank=2))
    shake(at)
    y = run(model)
    at.merge()
    torch.testing.assert_close(run(model), y, atol=1e-12, rtol=0)
    at.detach()
    assert torch.equal(run(model), base)


def test_refusals() -> None:
    for settings in ({"rank": 0}, {"dropout": 1.0}):
        with pytest.raises(NoSuchSetting, match=next(iter(settings))):
            thrifty.attach(tiny("bert"), thrifty.LoRAFA(**settings))

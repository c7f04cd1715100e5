"""Gradient checkpointing as transformers does it: non-reentrant works, reentrant is refused with the remedy."""
from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import thrifty
from thrifty.core.errors import NothingTrains, ThriftyError
from thrifty.testing import tiny
from thrifty.testing.measuring import alike, gradients, loss, put, stir

LORA = thrifty.LoRA(rank=2, where="attn.?|mlp.*")


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "vit"])
def test_non_reentrant_gives_the_same_gradients(name: str) -> None:
    backbone = tiny.make(name)
    model, at = put(LORA, backbone)
    stir(at)
    _still(model.train())
    loss(backbone, model).backward()
    wanted = gradients(at)
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loss(backbone, model).backward()
    assert len(wanted) == len(at.parameters())
    alike(gradients(at), wanted, f"{name}, checkpointed by transformers")


def _still(model: nn.Module) -> None:
    """No dropout, which transformers keeps in modules and in plain numbers: it checkpoints in training mode only."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def test_reentrant_over_a_frozen_embedding_is_refused() -> None:
    backbone = tiny.make("vit")
    model = backbone.fresh()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(ThriftyError, match="'use_reentrant': False"):
        thrifty.attach(model, LORA)
    assert not thrifty.attachments(model)
    assert all(p.requires_grad for p in model.parameters())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    thrifty.attach(model, LORA)


@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_reentrant_where_transformers_lets_the_embedding_want_gradients(first: bool) -> None:
    """For models of text it hooks the embedding's output, so that nothing is lost, and nothing needs refusing."""
    backbone = tiny.make("llama")
    model = backbone.fresh()
    if first:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    at = thrifty.attach(model, LORA)
    if not first:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    stir(at)
    loss(backbone, model.train()).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in at.parameters())


class Blocks(nn.Module):
    """Blocks that checkpoint themselves, reentrantly, as old training scripts do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(16, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=True)
        return self.head(x)


def test_gradients_that_a_loop_of_its_own_loses_are_noticed() -> None:
    model = Blocks()
    at = thrifty.attach(model, thrifty.LoRA(rank=2, where="layers.*.0"), also_train="head", example=torch.tensor([[1, 2]]))
    with pytest.raises(NothingTrains, match="use_reentrant=False"):
        for _ in range(3):
            model(torch.tensor([[1, 2]])).sum().backward()
    assert {p.grad is None for n, p in at.named_parameters() if n.startswith("edit:")} == {True}

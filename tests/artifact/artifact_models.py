"""Tiny random models, a batch for each, and ways to make an adapter look trained."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Convolver(nn.Module):
    """Images [batch, 3, 9, 9] -> 5 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv2(torch.relu(self.bn(self.conv1(x)))).mean((2, 3)))


def bert(seed: int = 1, layers: int = 3) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return _seeded(seed, lambda: BertForSequenceClassification(BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, num_labels=3)))


def gpt2(seed: int = 1) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return _seeded(seed, lambda: GPT2LMHeadModel(GPT2Config(
        vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2)))


def llama(seed: int = 1) -> nn.Module:
    """Two key-value heads for four query heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return _seeded(seed, lambda: LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, max_position_embeddings=64)))


def t5(seed: int = 1) -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return _seeded(seed, lambda: T5ForConditionalGeneration(T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)))


def cnn(seed: int = 1) -> nn.Module:
    return _seeded(seed, Convolver)


def plain(seed: int = 1) -> nn.Module:
    """A multilayer perceptron: the quickest thing that holds linear layers and a batch norm."""
    return _seeded(seed, lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(),
                                               nn.Linear(8, 3)))


MODELS: dict[str, Callable[..., nn.Module]] = {"bert": bert, "gpt2": gpt2, "llama": llama, "t5": t5, "cnn": cnn, "plain": plain}


def _seeded(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    """Every number random and large enough that an edit anywhere shows in the output."""
    draw = torch.Generator().manual_seed(seed)
    model = make()
    with torch.no_grad():
        for p in model.parameters():
            scale = p[0].numel() ** -0.5 if p.dim() > 1 else 0.1
            p.copy_(torch.randn(p.shape, generator=draw) * scale + (p.dim() == 1 and float(p.mean() > 0.5)))
    return model.eval()


def batch(name: str) -> dict[str, Tensor]:
    ids = torch.tensor([[5, 17, 33, 9, 40, 21, 8], [12, 3, 59, 44, 7, 0, 0]])
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    draw = torch.Generator().manual_seed(7)
    if name == "cnn":
        return {"x": torch.randn(2, 3, 9, 9, generator=draw)}
    if name == "plain":
        return {"input": torch.randn(4, 6, generator=draw)}
    return {"input_ids": ids, "attention_mask": mask} | ({"decoder_input_ids": ids[:, :4]} if name == "t5" else {})


@torch.no_grad()
def answer(model: nn.Module, name: str, **more: Any) -> Tensor:
    out = model(**batch(name), **more)
    return out if isinstance(out, Tensor) else out.logits


@torch.no_grad()
def shake(parameters: Any, seed: int = 3, scale: float = 0.2) -> None:
    """Stands in for training: every parameter moves by noise."""
    draw = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.add_(torch.randn(p.shape, generator=draw).to(p) * scale)

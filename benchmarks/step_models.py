"""What a training step is measured on: three models with a batch each; methods as thrifty has them, HF PEFT, or a user by hand."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import thrifty

LINEAR = "attn.?|mlp.*"
RANK, ALPHA, LENGTH = 8, 16, 10


@dataclass
class Case:
    """A model and a batch for it."""

    build: Callable[[], nn.Module]
    batch: dict[str, Tensor]
    tokens: int


def minilm(small: bool) -> Case:
    """The built-in sentence encoder with a head for three classes."""
    from thrifty.models import load

    rows, length = (4, 16) if small else (32, 64)
    ids = torch.randint(1000, 20000, (rows, length))
    return Case(lambda: load("minilm", "text-classification", ["a", "b", "c"]).model,
                {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids.numel())


def llama(small: bool) -> Case:
    """A LLaMA of 12 layers of width 768, drawn at random."""
    import transformers

    config = transformers.LlamaConfig(hidden_size=768, num_hidden_layers=2 if small else 12, num_attention_heads=12,
                                      intermediate_size=2048, vocab_size=20000, num_labels=3, pad_token_id=0)
    ids = torch.randint(1, 20000, (2, 32) if small else (4, 256))
    return Case(lambda: transformers.LlamaForSequenceClassification(config), {"input_ids": ids}, ids.numel())


def vit(small: bool) -> Case:
    """ViT-B/16, drawn at random."""
    import transformers

    config = transformers.ViTConfig(num_hidden_layers=2 if small else 12, num_labels=3)
    pixels = torch.randn(2 if small else 8, 3, 224, 224)
    return Case(lambda: transformers.ViTForImageClassification(config), {"pixel_values": pixels}, len(pixels) * 197)


CASES = {"minilm": minilm, "llama": llama, "vit": vit}


def ours(model: nn.Module, method: thrifty.Method, activations: str = "all") -> nn.Module:
    """By thrifty."""
    thrifty.attach(model, method, also_train="head", activations=activations, check=False)
    return model


def theirs(model: nn.Module, config: Any) -> nn.Module:
    """By HF PEFT, on the very modules that thrifty edits."""
    import peft

    heads = [f"{site.path}.{name}" for site in thrifty.sites(model, "head") for name, _ in site.module.named_parameters()]
    made: nn.Module = peft.get_peft_model(model, config)
    for name, p in made.named_parameters():
        if name.endswith(tuple(heads)):
            p.requires_grad_(True)
    return made


def head(model: nn.Module) -> nn.Module:
    """Only the head trains."""
    model.requires_grad_(False)
    for site in thrifty.sites(model, "head"):
        site.module.requires_grad_(True)
    return model


class Wrapped(nn.Module):
    """h + W_u act(W_d h) around a module that gives h [..., width]: a bottleneck as one writes it by hand."""

    def __init__(self, inner: nn.Module, width: int, rank: int) -> None:
        super().__init__()
        self.inner, self.down, self.up = inner, nn.Linear(width, rank), nn.Linear(rank, width)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the module, with the bottleneck behind it."""
        h: Tensor = self.inner(*args, **kwargs)
        return h + self.up(F.gelu(self.down(h), approximate="tanh"))


def by_hand(model: nn.Module, rank: int) -> nn.Module:
    """Houlsby's adapters as wrapper modules, with every normalisation trained."""
    places, norms = thrifty.sites(model, "after.attn|after.mlp"), thrifty.sites(model, "norm*")
    head(model)
    for site in norms:
        site.module.requires_grad_(True)
    for site in places:
        parent, _, name = site.path.rpartition(".")
        setattr(model.get_submodule(parent), name, Wrapped(site.module, site.dout, rank))
    return model


def paths(model: nn.Module, where: str) -> list[str]:
    """Of the modules that play these roles."""
    return [site.path for site in thrifty.sites(model, where)]


def pair(what: str, fresh: Callable[[], nn.Module]) -> tuple[str, nn.Module, Callable[[str], nn.Module]]:
    """The peer's name, its model, and a function from "all", "less" or "least" to thrifty's.

    Raises:
        SystemExit: there is no such thing to measure.
    """
    import peft

    where = "attn.q|attn.v" if what.endswith("-qv") else LINEAR
    low = {"r": RANK, "lora_alpha": ALPHA, "target_modules": paths(fresh(), where)}
    if what in ("lora", "lora-qv"):
        method: thrifty.Method = thrifty.LoRA(rank=RANK, alpha=ALPHA, where=where)
        return "PEFT", theirs(fresh(), peft.LoraConfig(**low)), lambda level: ours(fresh(), method, level)
    if what == "dora":
        method = thrifty.DoRA(rank=RANK, alpha=ALPHA, dropout=0.0, where=where)
        return "PEFT", theirs(fresh(), peft.LoraConfig(use_dora=True, **low)), lambda level: ours(fresh(), method, level)
    if what == "ia3":
        modules = fresh()
        inner = paths(modules, "mlp.out")
        config = peft.IA3Config(target_modules=[*paths(modules, "attn.k|attn.v"), *inner], feedforward_modules=inner)
        return "PEFT", theirs(modules, config), lambda level: ours(fresh(), thrifty.IA3(), level)
    if what == "prefix":  # PEFT's needs a model of transformers itself
        prefix = peft.PrefixTuningConfig(num_virtual_tokens=LENGTH, task_type="SEQ_CLS")
        method = thrifty.PrefixTuning(length=LENGTH, mlp=False)
        return "PEFT", theirs(fresh(), prefix), lambda level: ours(fresh(), method, level)
    if what == "houlsby":
        return "by hand", by_hand(fresh(), 64), lambda level: ours(fresh(), thrifty.Houlsby(rank=64), level)
    raise SystemExit(f"nothing to measure is called {what!r}: lora, lora-qv, dora, ia3, prefix, houlsby")

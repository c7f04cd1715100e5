"""One training step: thrifty, HF PEFT, full fine-tuning and a head alone; seconds, and bytes kept for the backward pass.

    python benchmarks/train_step.py [--only minilm,llama,vit] [--precision float32,bfloat16] [--sites all,qv] [--repeats 7]
                                    [--threads 2] [--device cpu] [--small] [--bytes]

LoRA of rank 8 on q and v, or on every linear layer of the blocks, of MiniLM (32 texts of 64 tokens), of a LLaMA of 100 million
parameters (4 x 256 tokens) and of a ViT-B/16 (8 pictures), with three classes; dropout as the model is configured. A step is
forward, backward and AdamW. All contenders live in one process and take turns; PEFT edits the very modules that thrifty does. The
ratio is the median of those of single turns, with its range. In bfloat16 the frozen weights and the activations are, and adapters
are float32, in both libraries.

"kept" is what stays allocated between the forward and the backward pass, asked of the allocator (CUDA's, or glibc's). "limit" is
the arithmetic of the frozen linear layers at the peak that this machine reaches in matrix products: with N weights and T tokens,
2NT forward, 2NT more for gradients of activations, 2NT more for those of weights. With ``--bytes`` nothing is timed.
"""
from __future__ import annotations

import argparse
import ctypes
import gc
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from machine import copy_bandwidth, describe, matmul_peak, seconds
from torch import Tensor, nn

import thrifty

WHERE = {"qv": "attn.q|attn.v", "all": "attn.?|mlp.*"}
RANK, ALPHA = 8, 16


@dataclass
class Case:
    """A model and a batch for it."""

    build: Callable[[], nn.Module]
    batch: dict[str, Tensor]
    tokens: int


@dataclass
class Contender:
    """What takes a step."""

    name: str
    model: nn.Module
    products: int  # of N weights by T tokens: forward, for activations, for weights

    def __post_init__(self) -> None:
        self.model.train()
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-4)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Of three classes."""
        logits = self.model(**batch).logits
        return F.cross_entropy(logits.float(), torch.arange(len(logits), device=logits.device) % 3)

    def step(self, batch: dict[str, Tensor]) -> None:
        """Forward, backward, AdamW."""
        self.loss(batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


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


def head(model: nn.Module) -> nn.Module:
    """Only the head trains."""
    model.requires_grad_(False)
    for site in thrifty.sites(model, "head"):
        site.module.requires_grad_(True)
    return model


def ours(model: nn.Module, where: str, activations: str) -> nn.Module:
    """LoRA by thrifty."""
    method = thrifty.LoRA(rank=RANK, alpha=ALPHA, where=where)
    thrifty.attach(model, method, also_train="head", activations=activations, check=False)
    return model


def theirs(model: nn.Module, where: str) -> nn.Module:
    """LoRA by HF PEFT, on the same modules."""
    import peft

    paths = [site.path for site in thrifty.sites(model, where)]
    heads = [f"{site.path}.{name}" for site in thrifty.sites(model, "head") for name, _ in site.module.named_parameters()]
    made: nn.Module = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=paths))
    for name, p in made.named_parameters():
        if name.endswith(tuple(heads)):
            p.requires_grad_(True)
    return made


def contenders(fresh: Callable[[], nn.Module], sites: str) -> list[Contender]:
    """All that take a step on one case; PEFT is the first."""
    where = WHERE[sites]
    found = [Contender("PEFT LoRA", theirs(fresh(), where), 2)]
    found += [Contender(f"thrifty LoRA, keeps {level}", ours(fresh(), where, level), 2) for level in ("all", "less", "least")]
    count = {sum(p.numel() for p in c.model.parameters() if p.requires_grad) for c in found}
    assert len(count) == 1, f"they do not train the same number of parameters: {count}"
    if sites == "all":
        found += [Contender("full fine-tuning", fresh().requires_grad_(True), 3), Contender("head alone", head(fresh()), 1)]
    return found


class _Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]


def allocated(device: torch.device) -> int:
    """Bytes that are in use, as the allocator counts them."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    asks = ctypes.CDLL("libc.so.6").mallinfo2
    asks.restype = _Heap
    heap = asks()
    return int(heap.uordblks + heap.hblkhd)


def kept(contender: Contender, batch: dict[str, Tensor], device: torch.device) -> int:
    """Bytes that stay between the forward and the backward pass."""
    contender.step(batch)
    before = allocated(device)
    loss = contender.loss(batch)
    found = allocated(device) - before
    loss.backward()
    contender.optimizer.zero_grad(set_to_none=True)
    return found


def measure(name: str, case: Case, sites: str, dtype: torch.dtype, device: torch.device, repeats: int) -> None:
    """Print a line for each contender."""
    batch = {k: (t.to(dtype) if t.is_floating_point() else t).to(device) for k, t in case.batch.items()}

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return case.build().to(device, dtype)

    every = contenders(fresh, sites)
    weights = sum(site.module.weight.numel() for site in thrifty.sites(every[-1].model, WHERE["all"])) if sites == "all" else 0
    memory = [kept(c, batch, device) for c in every]
    times: list[list[float]] = [[] for _ in every]
    for turn in range(repeats):
        for i in range(len(every)):
            at = (i + turn) % len(every)
            times[at].append(seconds(lambda c=every[at]: c.step(batch), device))
    peak = matmul_peak(dtype, device) if repeats and weights else 0.0
    for c, held, took in zip(every, memory, times, strict=True):
        line: list[str] = [name, str(dtype).removeprefix("torch."), sites, c.name]
        if took:
            ratios = [one / other for one, other in zip(took, times[0], strict=True)]
            limit = 2 * c.products * weights * case.tokens / peak if peak else 0.0
            line += [f"{statistics.median(took) * 1e3:.0f} ({min(took) * 1e3:.0f}–{max(took) * 1e3:.0f})",
                     f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
                     f"{limit * 1e3:.0f}" if limit else "–"]
        print("|", " | ".join([*line, f"{held / 2**20:.1f}", f"{held / max(memory[0], 1):.2f}"]), "|", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="minilm,llama,vit")
    parser.add_argument("--precision", default="float32,bfloat16")
    parser.add_argument("--sites", default="all,qv")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="little models and batches, to see that the script runs")
    parser.add_argument("--bytes", action="store_true", help="only what is kept")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    print(describe(device) + ("" if given.bytes else f"; copies {copy_bandwidth(device) / 1e9:.1f} GB/s"))
    timed = "" if given.bytes else " ms (range) | ratio to PEFT (range) | limit, ms |"
    print(f"\n| model | precision | sites | what |{timed} kept, MiB | ratio to PEFT |")
    print("|---|---|---|---|" + ("" if given.bytes else "---|---|---|") + "---|---|")
    for name in given.only.split(","):
        for precision in given.precision.split(","):
            for sites in given.sites.split(","):
                torch.manual_seed(0)
                repeats = 0 if given.bytes else given.repeats
                measure(name, CASES[name](given.small), sites, getattr(torch, precision), device, repeats)
                gc.collect()


if __name__ == "__main__":
    main()

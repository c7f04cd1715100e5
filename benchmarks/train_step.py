"""One training step: thrifty, HF PEFT, full fine-tuning and a head alone; seconds, and bytes kept for the backward pass.

    python benchmarks/train_step.py [--only minilm,llama,vit] [--methods lora,lora-qv,dora,ia3,prefix,houlsby]
                                    [--levels all,less,least] [--precision float32,bfloat16] [--repeats 7] [--threads 2]
                                    [--device cpu] [--busy] [--small] [--bytes]

MiniLM (32 texts of 64 tokens), a LLaMA of 100 million parameters (4 x 256 tokens) and a ViT-B/16 (8 pictures), with three classes;
dropout as the model is configured. LoRA and DoRA of rank 8 on every linear layer of the blocks, or on q and v. A step is forward,
backward and AdamW. All contenders live in one process and take turns; PEFT edits the very modules that thrifty does. It has no
bottleneck adapters: Houlsby's are compared with wrapper modules written by hand. Its prefix tuning does not take MiniLM with the
mean over tokens, but the other two. The ratio is the median of those of single turns,
with its range. In bfloat16 the frozen weights and the activations are, and adapters are float32, in both libraries.

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
from functools import partial

import torch
import torch.nn.functional as F
from machine import copy_bandwidth, describe, matmul_peak, seconds
from step_models import CASES, LINEAR, Case, head, pair
from torch import Tensor, nn

import thrifty


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


def contenders(what: str, levels: list[str], whole: bool, fresh: Callable[[], nn.Module]) -> list[Contender]:
    """All that take a step on one case; the peer is the first."""
    name, peer, made = pair(what, fresh)
    found = [Contender(f"{what}, {name}", peer, 2)]
    found += [Contender(f"{what}, thrifty, keeps {level}", made(level), 2) for level in levels]
    count = [sum(p.numel() for p in c.model.parameters() if p.requires_grad) for c in found]
    assert len(set(count)) == 1, f"they do not train the same number of parameters: {count}"
    if whole:
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


def measure(case: Case, every: list[Contender], dtype: torch.dtype, device: torch.device, repeats: int, start: str,
            busy: bool) -> None:
    """Print a line for each."""
    batch = {k: (t.to(dtype) if t.is_floating_point() else t).to(device) for k, t in case.batch.items()}
    weights = sum(site.module.weight.numel() for site in thrifty.sites(case.build(), LINEAR))
    memory = [kept(c, batch, device) for c in every]
    times: list[list[float]] = [[] for _ in every]
    for turn in range(repeats):
        for i in range(len(every)):
            at = (i + turn) % len(every)
            times[at].append(seconds(lambda c=every[at]: c.step(batch), device, busy))
    peak = matmul_peak(dtype, device, busy=busy) if repeats else 0.0
    for c, held, took in zip(every, memory, times, strict=True):
        line: list[str] = [start, str(dtype).removeprefix("torch."), c.name]
        if took:
            ratios = [one / other for one, other in zip(took, times[0], strict=True)]
            line += [f"{statistics.median(took) * 1e3:.0f} ({min(took) * 1e3:.0f}–{max(took) * 1e3:.0f})",
                     f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
                     f"{2 * c.products * weights * case.tokens / peak * 1e3:.0f}"]
        print("|", " | ".join([*line, f"{held / 2**20:.1f}", f"{held / max(memory[0], 1):.2f}"]), "|", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="minilm,llama,vit")
    parser.add_argument("--methods", default="lora,lora-qv,dora,ia3,prefix,houlsby")
    parser.add_argument("--levels", default="all,less,least")
    parser.add_argument("--precision", default="float32,bfloat16")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--busy", action="store_true", help="time for which the processor worked, where others use the machine too")
    parser.add_argument("--small", action="store_true", help="little models and batches, to see that the script runs")
    parser.add_argument("--bytes", action="store_true", help="only what is kept")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device, repeats = torch.device(given.device), 0 if given.bytes else given.repeats
    print(describe(device) + ("" if given.bytes else f"; copies {copy_bandwidth(device) / 1e9:.1f} GB/s"))
    timed = "" if given.bytes else " ms (range) | ratio to peer (range) | limit, ms |"
    print(f"\n| model | precision | what |{timed} kept, MiB | ratio to peer |")
    print("|---|---|---|" + ("" if given.bytes else "---|---|---|") + "---|---|")
    for name in given.only.split(","):
        for precision in given.precision.split(","):
            for what in given.methods.split(","):
                torch.manual_seed(0)
                case, dtype = CASES[name](given.small), getattr(torch, precision)
                build = partial(_fresh, case, device, dtype)
                every = contenders(what, given.levels.split(","), what == "lora", build)
                measure(case, every, dtype, device, repeats, name, given.busy)
                gc.collect()


def _fresh(case: Case, device: torch.device, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return case.build().to(device, dtype)


if __name__ == "__main__":
    main()

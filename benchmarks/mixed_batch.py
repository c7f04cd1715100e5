"""One batch whose rows use different LoRAs: thrifty's `Rows` beside HF PEFT's mixed batch, with the same weights.

    python benchmarks/mixed_batch.py [--repeats 9] [--adapters 1,4,16,32] [--rows 32] [--tokens 1,16,64] [--where all] [--threads 2]

MiniLM (6 layers, width 384, float32) with LoRAs of rank 8 on q and v, or on every linear layer (--where all). Rows are dealt to the
adapters in turn. Both sides take turns in one process; outputs are compared first. "adapters alone" takes away what the model costs
without any adapter, which no serving of adapters can spare. Medians of rows per second, the range of the ratio over the turns.
"""
from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import thrifty
from thrifty.artifact import peft as peft_files
from thrifty.models import load

TARGETS = {"attn": (["query", "value"], "attn.q|attn.v"),
           "all": (["query", "key", "value", "dense"], "attn.?|mlp.*")}


def encoder() -> nn.Module:
    """The built-in sentence encoder, anew."""
    return load("minilm", "text-classification", ["a", "b"]).model.eval()


def make(count: int, where: str, folder: Path) -> list[Path]:
    """That many adapters of different weights, saved."""
    model, made = encoder(), []
    for i in range(count):
        torch.manual_seed(i)
        at = thrifty.attach(model, thrifty.LoRA(rank=8, where=TARGETS[where][1]), check=False)
        for p in at.parameters():
            nn.init.normal_(p, std=0.05)
        made.append(at.save(folder / f"a{i}"))
        at.detach()
    return made


def ours(folders: list[Path], names: list[str]) -> tuple[nn.Module, Callable[[dict[str, Tensor]], Tensor]]:
    """The model with all adapters, and how a batch is asked."""
    model = encoder()
    thrifty.compose(model, thrifty.Rows({f"a{i}": folder for i, folder in enumerate(folders)}))

    def ask(batch: dict[str, Tensor]) -> Tensor:
        with thrifty.task(model, names):
            answer: Tensor = model(**batch).logits
        return answer

    return model, ask


def theirs(folders: list[Path], names: list[str], spare: Path) -> tuple[nn.Module, Callable[[dict[str, Tensor]], Tensor]]:
    """The same adapters as PEFT loads them, and its mixed batch."""
    import peft

    model = encoder()
    for i, folder in enumerate(folders):
        at = thrifty.load(model, folder, check=False)
        peft_files.write(at, spare / f"a{i}")
        at.detach()
    wrapped: Any = peft.PeftModel.from_pretrained(model, spare / "a0", adapter_name="a0")
    for i in range(1, len(folders)):
        wrapped.load_adapter(spare / f"a{i}", adapter_name=f"a{i}")
    wrapped.eval()

    def ask(batch: dict[str, Tensor]) -> Tensor:
        answer: Tensor = wrapped(**batch, adapter_names=names).logits
        return answer

    return wrapped, ask


def answer(model: nn.Module, batch: dict[str, Tensor]) -> Any:
    """What the model says."""
    return model(**batch)


def turns(calls: list[Callable[..., Any]], batch: dict[str, Tensor], repeats: int) -> list[list[float]]:
    """Seconds that each call took of the batch, in turn."""
    found = []
    for _ in range(repeats):
        row = []
        for call in calls:
            began = time.perf_counter()
            call(batch)
            row.append(time.perf_counter() - began)
        found.append(row)
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--adapters", default="1,4,16,32")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", default="1,16,64")
    parser.add_argument("--where", choices=TARGETS, default="attn")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, {args.rows} rows, LoRA rank 8 on {args.where}, {args.repeats} turns\n")
    print("| tokens | adapters | no adapter rows/s | thrifty rows/s | PEFT rows/s | ratio (range) | adapters alone, ratio |\n"
          "|--:|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as spare, torch.no_grad():
        for count in map(int, args.adapters.split(",")):
            place = Path(spare) / str(count)
            folders = make(count, args.where, place)
            names = [f"a{i % count}" for i in range(args.rows)]
            bare, (_, ask), (_, other) = encoder(), ours(folders, names), theirs(folders, names, place / "peft")
            for tokens in map(int, args.tokens.split(",")):
                ids = torch.randint(1000, 20000, (args.rows, tokens), generator=torch.Generator().manual_seed(0))
                batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                torch.testing.assert_close(ask(batch), other(batch), rtol=1e-3, atol=1e-4)
                times = turns([partial(answer, bare), ask, other], batch, args.repeats)
                base, mine, peers = (statistics.median(t[i] for t in times) for i in range(3))
                ratios = [t[2] / t[1] for t in times]
                alone = (peers - base) / max(1e-9, mine - base)
                print(f"| {tokens} | {count} | {args.rows / base:.0f} | {args.rows / mine:.0f} | {args.rows / peers:.0f} | "
                      f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {alone:.1f} |", flush=True)


if __name__ == "__main__":
    main()

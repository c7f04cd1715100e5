"""What thrifty costs besides the arithmetic: importing, attaching, idle edits, compiling, and the 1st against the 1000th adapter.

    python benchmarks/overheads.py [--repeats 7] [--only import,attach,site,load,compile]

Beside HF PEFT where it does the same, in one process and taking turns; medians, the range over repeats, and the ratio. Imports need
processes of their own. The 7B shape is LLaMA's, on the meta device: 32 blocks, width 4096, no weights.
"""
from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import thrifty
from thrifty.models import load

Timed = dict[str, list[float]]
HEAD = f"{'what':46s} {'median':>12s} {'range':>24s}"


def turns(repeats: int, calls: dict[str, Callable[[], Any]]) -> Timed:
    """Seconds that each call took, one after the other ``repeats`` times after a first round that does not count."""
    found: Timed = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if turn:
                found[name].append(time.perf_counter() - began)
    return found


def show(found: Timed, scale: float, unit: str) -> None:
    """A line for each."""
    for name, seconds in found.items():
        low, high = (f"{scale * x:.2f}" for x in (min(seconds), max(seconds)))
        print(f"{name:46s} {scale * statistics.median(seconds):9.2f} {unit:2s} {low + ' to ' + high:>24s}", flush=True)


def importing(repeats: int) -> None:
    """`import thrifty` on top of `import torch`."""
    def run(code: str) -> Callable[[], Any]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    found = turns(repeats, {"import torch": run("import torch"), "import torch, thrifty": run("import torch, thrifty")})
    show(found, 1e3, "ms")
    more = statistics.median(found["import torch, thrifty"]) - statistics.median(found["import torch"])
    print(f"{'thrifty adds':46s} {1e3 * more:9.2f} ms")


def attaching(repeats: int) -> None:
    """LoRA on q and v, and on all linear layers, of a 7B shape."""
    import peft
    import transformers

    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig())
    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

    def ours(where: str) -> Callable[[], Any]:
        return lambda: thrifty.attach(model, thrifty.LoRA(where=where), check=False).detach()

    def theirs(targets: list[str]) -> Callable[[], Any]:
        return lambda: peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules=targets)).unload()

    show(turns(repeats, {"attach and detach, LoRA q and v": ours("attn.q|attn.v"), "the same, PEFT": theirs(["q_proj", "v_proj"]),
                         "attach and detach, LoRA all linear": ours("attn.?|mlp.*"), "the same, PEFT, all": theirs(every)}),
         1e3, "ms")


def sites(repeats: int) -> None:
    """What an edit costs per call of its layer: while it is off, and while it is on beyond its own arithmetic."""
    import peft

    calls, layer = 2000, nn.Linear(8, 8)
    x = torch.randn(1, 8)
    held, foreign = nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8))
    at = thrifty.attach(held, thrifty.LoRA(rank=1, alpha=1, where="0"), check=False)
    wrapped = peft.get_peft_model(foreign, peft.LoraConfig(r=1, lora_alpha=1, target_modules=["0"]))
    theirs = foreign[0]

    def many(module: nn.Module) -> Callable[[], None]:
        def run() -> None:
            for _ in range(calls):
                module(x)
        return run

    def off() -> None:
        with at.disabled():
            many(held[0])()

    def off_theirs() -> None:
        with wrapped.disable_adapter():
            many(theirs)()

    with torch.no_grad():
        show(turns(repeats, {"a plain Linear(8, 8)": many(layer), "with a LoRA that is off": off, "the same, PEFT": off_theirs,
                             "with a LoRA that is on": many(held[0]), "the same, PEFT, on": many(theirs)}), 1e6 / calls, "us")


def loading(repeats: int) -> None:
    """The 1st adapter on a model and the 1000th beside 999 others."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                     intermediate_size=64)
    model = transformers.BertForSequenceClassification(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        at = thrifty.attach(model, thrifty.LoRA(rank=2))
        for p in at.parameters():
            nn.init.normal_(p)
        at.save(Path(folder) / "a")
        at.detach()

        def once() -> None:
            thrifty.load(model, Path(folder) / "a", "probe", check=False).detach()

        show(turns(repeats, {"load and detach, the only one": once}), 1e3, "ms")
        for i in range(999):
            thrifty.load(model, Path(folder) / "a", f"n{i}", check=False).disable()
        show(turns(repeats, {"load and detach, beside 999 others": once}), 1e3, "ms")


def compiling(repeats: int) -> None:
    """Graph breaks, and what compiling brings, for MiniLM with LoRA on all linear layers."""
    backbone = load("minilm", "text-classification", ["a", "b"])
    model = backbone.model.eval()
    thrifty.attach(model, thrifty.LoRA(where="attn.?|mlp.*"), check=False)
    batch = {"input_ids": torch.randint(1000, 2000, (8, 64)), "attention_mask": torch.ones(8, 64, dtype=torch.long)}
    compiled: Any = torch.compile(model, fullgraph=True)  # which refuses to break the graph
    with torch.no_grad():
        show(turns(repeats, {"MiniLM with LoRA, 8 x 64 tokens, eager": lambda: model(**batch),
                             "the same, compiled whole": lambda: compiled(**batch)}), 1e3, "ms")


PARTS = {"import": importing, "attach": attaching, "site": sites, "load": loading, "compile": compiling}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default=",".join(PARTS))
    args = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, {args.repeats} repeats\n\n{HEAD}")
    for name in args.only.split(","):
        PARTS[name](args.repeats)


if __name__ == "__main__":
    main()

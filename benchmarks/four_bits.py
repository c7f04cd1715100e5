"""LoRA on a base in four bits beside the same base in full, and beside HF PEFT on both: memory, time, and what is lost.

    python benchmarks/four_bits.py [--model FOLDER] [--repeats 5] [--batch 4] [--length 128]

The model is SmolLM2 of 135 M parameters, the texts are E2E's. Rank 8 on all linear layers, float32, the same batches for all.
Memory is measured in a process for each; steps are timed in one process, taking turns.

- weights: bytes of parameters and buffers, and of what stands beside packed ones
- activations: what autograd keeps between the passes
- resident: the most that the process held, less what it held before the model was read
- loss: mean over 64 texts, before any training: what four bits alone cost
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from overheads import turns
from study import ASSETS, WEIGHTS
from torch import Tensor, nn

import thrifty
from thrifty.methods.memory.activation_memory import measure
from thrifty.models import load
from thrifty.train.memory import peak

KINDS = ("thrifty, full", "thrifty, nf4", "PEFT, full", "PEFT, nf4")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make(kind: str, folder: str) -> nn.Module:
    """The model with LoRA on it."""
    torch.manual_seed(0)
    who, _, weights = kind.partition(", ")
    if who == "thrifty":
        model = load(folder, "causal-generation", weights=weights).model
        thrifty.attach(model, thrifty.LoRA(rank=8, alpha=16, where="attn.?|mlp.*"), seed=0)
        return model.train()
    import peft
    import transformers

    packed = {"quantization_config": transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32)}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa",
                                                              device_map="cpu", **(packed if weights == "nf4" else {}))
    if weights == "nf4":
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=LINEAR)).train()


def texts(folder: str, count: int, length: int) -> list[dict[str, Tensor]]:
    """Texts as token numbers, each cut or repeated to ``length``."""
    import pyarrow.parquet as pq
    import transformers

    reader = transformers.AutoTokenizer.from_pretrained(folder)
    rows = pq.read_table(ASSETS / "text/e2e_nlg/test.parquet").to_pylist()
    ids = [token for row in rows[: 20 * count] for token in reader(row["ref"])["input_ids"]]
    return [{"input_ids": torch.tensor(ids[i * length : (i + 1) * length])} for i in range(count)]


def step(model: nn.Module, batch: dict[str, Tensor]) -> Callable[[], Any]:
    """One step of AdamW."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()

    return run


def together(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows as one batch."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def look(kind: str, args: argparse.Namespace) -> dict[str, float]:
    """What one kind takes, in this process."""
    rows = texts(args.model, 64, args.length)
    cpu = torch.device("cpu")
    torch.zeros(9, 9) @ torch.zeros(9, 9)  # libraries load what they need at the first product
    before = peak(cpu)["peak_bytes"]
    model = make(kind, args.model)
    with torch.no_grad():
        losses = [float(model(**together([row]), labels=row["input_ids"][None]).loss) for row in rows]
    held = {id(t): t for t in (*model.parameters(), *model.buffers())}
    beside = [t for p in held.values() for t in packed_beside(p)]
    run, batch = step(model, together(rows[: args.batch])), together(rows[: args.batch])
    run()
    kept = measure(model, lambda: model(**batch, labels=batch["input_ids"]).loss)
    return {"weights": sum(t.numel() * t.element_size() for t in (*held.values(), *beside)), "activations": kept,
            "resident": peak(cpu)["peak_bytes"] - before, "loss": statistics.fmean(losses)}


def packed_beside(p: Tensor) -> list[Tensor]:
    """The scales of a packed weight, and their scales."""
    state = getattr(p, "quant_state", None)
    return [] if state is None else [state.absmax, state.state2.absmax]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(WEIGHTS / "smollm2-135m"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--one", choices=KINDS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(look(args.one, args)))
        return
    found = {kind: json.loads(subprocess.run([sys.executable, *sys.argv, "--one", kind], check=True, stdout=subprocess.PIPE,
                                             text=True).stdout.splitlines()[-1]) for kind in KINDS}
    batch = together(texts(args.model, args.batch, args.length))
    steps = {kind: step(make(kind, args.model), batch) for kind in KINDS}
    seconds = turns(args.repeats, steps)
    print(f"batch {args.batch} × {args.length} tokens, float32, {torch.get_num_threads()} threads of {os.cpu_count()} cores")
    print("| | weights MiB | activations MiB | resident MiB | loss | step s (range) |\n|---|---|---|---|---|---|")
    for kind, row in found.items():
        taken = seconds[kind]
        print(f"| {kind} | {row['weights'] / 2**20:.0f} | {row['activations'] / 2**20:.0f} | {row['resident'] / 2**20:.0f} | "
              f"{row['loss']:.3f} | {statistics.median(taken):.2f} ({min(taken):.2f} to {max(taken):.2f}) |")
    for weights in ("full", "nf4"):
        ours, theirs = (statistics.median(seconds[f"{who}, {weights}"]) for who in ("thrifty", "PEFT"))
        print(f"thrifty / PEFT, {weights}: {ours / theirs:.2f}")


if __name__ == "__main__":
    main()

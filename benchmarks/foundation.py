"""The foundation's methods on real data, three seeds each, beside full fine-tuning, a linear head and HF PEFT's LoRA.

    python benchmarks/foundation.py run [--only cola,mrpc] [--methods lora,dora] [--seeds 3]
    python benchmarks/foundation.py table          # writes docs/results.md from what was measured

Every method gets the same rows, order of the data, number of epochs, schedule and stopping rule, and one learning rate that is
the same on all sets (RATES). PEFT's LoRA is injected into the same model and trained by
the same loop, with the settings of ours. Runs are appended to benchmarks/results/foundation.jsonl as they end, and are not
repeated: the study can be stopped and gone on with.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import thrifty
from thrifty.core import Attachment, Method

HERE = Path(__file__).resolve().parent
STORE = HERE / "results" / "foundation.jsonl"
ASSETS = Path(os.environ.get("THRIFTY_ASSETS", HERE.parent.parent / "shared" / "assets")) / "data"
WEIGHTS = Path(os.environ.get("THRIFTY_WEIGHTS", HERE.parent / ".cache" / "weights"))


@dataclass
class PeftLoRA(Method):
    """HF PEFT's own LoRA layers, put into the model by PEFT and trained by thrifty's loop."""

    name = "peft-lora"
    rate = 1e-3
    targets: str = "query,value"
    rank: int = 8
    alpha: float = 16.0

    def attach(self, at: Attachment, batches: Any = None) -> None:
        """Inject, then train every tensor that PEFT added."""
        from peft import LoraConfig, inject_adapter_in_model

        inject_adapter_in_model(LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=self.targets.split(",")), at.model)
        at.train_matching("*.lora_A.*|*.lora_B.*")


@dataclass(frozen=True)
class Case:
    """One data set with the backbone it is adapted from, and what is reported."""

    data: str
    model: str
    metric: str
    note: str
    settings: dict[str, Any]
    methods: tuple[str, ...]
    columns: dict[str, str] | None = None
    test_rows: int | None = None


TEXT = ("full", "linear-probe", "bitfit", "layernorm", "lora", "lora all", "rslora", "lora+", "peft-lora", "dora", "ia3", "houlsby",
        "pfeiffer", "parallel-adapter", "prefix", "prompt")
CORE = tuple(label for label in TEXT if label not in ("lora all", "rslora", "lora+"))
CASES = {
    "cola": Case("text/glue_cola", "minilm", "matthews",
                 "4 000 of 8 551 training rows; the official dev split is the test split; 16 of its sentences also stand in train",
                 {"limit": 4000, "epochs": 1, "batch": 8, "allow_leak": True}, CORE),
    "mrpc": Case("text/glue_mrpc", "minilm", "accuracy", "480 of 3 667 training rows; the official dev split is the test split",
                 {"limit": 480, "epochs": 2, "batch": 8}, CORE),
    "stsb": Case("text/glue_stsb", "minilm", "pearson",
                 "960 of 5 749 training rows; the official dev split is the test split; 6 of its pairs also stand in train",
                 {"limit": 960, "epochs": 2, "batch": 8, "allow_leak": True}, TEXT),
    "rsscn7": Case("image/rsscn7", "mobilenetv2", "accuracy", "all 805 training images at 224 px",
                   {"epochs": 3}, ("full", "linear-probe", "bitfit", "layernorm", "lora conv")),
    "flowers5": Case("image/flowers5", "dinov2-small", "accuracy", "96 of 750 training images; 100 test images",
                     {"limit": 96, "epochs": 2, "batch": 8},
                     ("full", "linear-probe", "lora", "vpt", "vpt shallow"), test_rows=100),
    "webnlg": Case("text/webnlg2017", "stories15m", "bleu",
                   "240 of 6 940 training rows; 60 test rows; 18 pairs of equal rows lie in different splits",
                   {"limit": 240, "epochs": 2, "batch": 8, "max_length": 160, "max_new_tokens": 40, "baselines": False,
                    "allow_leak": True},
                   ("full", "bitfit", "lora", "lora all", "peft-lora", "ia3", "houlsby", "prefix", "prompt"),
                   {"source": "source", "target": "refs"}, test_rows=60),
}
# LoRA+'s is that of A, so that the geometric mean of its two rates is LoRA's: at 2e-3 a first run on STS-B ended at 0.05. The
# prefix network's was chosen on validation rows of STS-B with a seed outside the study (0.42 at 1e-3, 0.55 at 3e-4).
RATES = {"full": 1e-4, "linear-probe": 1e-2, "bitfit": 3e-3, "layernorm": 3e-3, "lora": 2e-3, "lora+": 5e-4, "peft-lora": 2e-3,
         "dora": 2e-3, "ia3": 1e-2, "houlsby": 2e-3, "pfeiffer": 2e-3, "parallel-adapter": 2e-3, "prefix": 3e-4, "prompt": 1e-1,
         "vpt": 1e-2}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora all": ("lora", {"where": "attn.?|mlp.*"}), "rslora": ("lora", {"stable": True}), "lora+": ("lora", {"ratio": 16.0}),
    "lora conv": ("lora", {"where": "conv"}), "vpt shallow": ("vpt", {"deep": False}),
}


def method_for(label: str, model: str) -> Method:
    """The method that a row of the table stands for."""
    from thrifty.methods import find

    if label == "peft-lora":
        return PeftLoRA(targets="q_proj,v_proj" if model == "stories15m" else "query,value")
    name, settings = VARIANTS.get(label, (label, {}))
    return find(name).make(**settings)


def data_for(case: Case) -> Any:
    """The folder; or, where the test split is cut for time, its tables with a seeded sample of it."""
    folder = ASSETS / case.data
    if case.test_rows is None:
        return folder
    import random

    import pyarrow.parquet as pq

    splits = {f.stem: pq.read_table(f).to_pylist() for f in sorted(folder.glob("*.parquet"))}
    splits["test"] = random.Random(0).sample(splits["test"], case.test_rows)
    return splits


def run(name: str, label: str, seed: int) -> dict[str, Any]:
    """Train and test once; returns the row that is stored."""
    case = CASES[name]
    model = case.model if case.model == "minilm" else str(WEIGHTS / case.model)
    with tempfile.TemporaryDirectory() as out:
        done = thrifty.tune(model, data_for(case), method=method_for(label, case.model), out=out, progress=False, overwrite=True,
                            settings={**case.settings, "seed": seed, "rate": RATES.get(label) or RATES[VARIANTS[label][0]],
                                      "baselines": label == "full" and case.settings.get("baselines", True),
                                      **({"columns": case.columns} if case.columns else {})})
    m = done.metrics
    return {"set": name, "method": label, "seed": seed, "metric": case.metric,
            "test": {k: v["value"] for k, v in m["test"].items()},
            "baselines": {b["name"]: {k: v["value"] for k, v in b["test"].items()} for b in m["baselines"]},
            "parameters": m["parameters"], "adapter_bytes": m["adapter_bytes"], "memory": m["memory"], "timing": m["timing"]}


def stored() -> list[dict[str, Any]]:
    """Every row measured so far."""
    return [json.loads(line) for line in STORE.read_text().splitlines()] if STORE.exists() else []


def run_all(only: list[str], methods: list[str], seeds: int) -> None:
    """Measure what is not measured yet; seeds outermost, so that an interrupted study is balanced.

    Each run has a process of its own, as peak memory is a process's.
    """
    known = {(r["set"], r["method"], r["seed"]) for r in stored()}
    for seed in range(seeds):
        for name in only or list(CASES):
            for label in CASES[name].methods:
                if (methods and label not in methods) or (name, label, seed) in known:
                    continue
                words = [sys.executable, __file__, "one", "--only", name, "--methods", label, "--seeds", str(seed)]
                row = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
                STORE.parent.mkdir(exist_ok=True)
                with STORE.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{name:10s} {label:18s} seed {seed}  {row['metric']} {row['test'][row['metric']]:.4f}  "
                      f"{row['timing']['train_seconds']:.0f} s", flush=True)


INTRODUCTION = """# Results of the foundation

Made by `benchmarks/foundation.py` from `benchmarks/results/foundation.jsonl`. Mean ± sample standard deviation over seeds. Each
method has one learning rate, the same on all sets: {rates}.
All were fixed before these runs but two: LoRA+ ended at 0.05 on STS-B in a first run at LoRA's rate, and the prefix network's was
chosen on validation rows of STS-B with another seed. Early stopping looks at a selection split carved out of the training rows;
the test split was read once per run. The linear head and the majority class saw the same training rows. PEFT's LoRA runs in the
same loop with the settings of `lora`. Small training subsets and few epochs: the numbers compare methods, they are not records.
Times are rough, as the machine ({machine}, {cores} cores) did other work too; peak memory is the resident set of the whole process.
"""


def table() -> str:
    """docs/results.md."""
    rows = stored()
    rates = ", ".join(f"{k} {v:g}" for k, v in RATES.items())
    text = [INTRODUCTION.format(machine=platform.processor() or platform.machine(), cores=os.cpu_count(), rates=rates)]
    wanted = sum(3 * len(case.methods) for case in CASES.values())
    if len(rows) < wanted:
        text.append(f"**Not finished:** {len(rows)} of {wanted} runs are measured; `python benchmarks/foundation.py run` goes on "
                    "where it stopped.\n")
    for name, case in CASES.items():
        here = [r for r in rows if r["set"] == name]
        if here:
            text.append(section(name, case, here))
    return "\n".join(text)


def section(name: str, case: Case, here: list[dict[str, Any]]) -> str:
    """The table of one data set."""
    epochs, batch = case.settings.get("epochs"), case.settings.get("batch", 32)
    lines = [f"## {name}: {case.model} on {case.data.partition('/')[2]}", "",
             f"{case.note}. {epochs} epochs, batch {batch}.", "",
             f"| method | {case.metric} | seeds | method's parameters | head | adapter KiB | train s | peak MiB |",
             "|---|---|---|---|---|---|---|---|"]
    for kind in next((r["baselines"] for r in here if r["baselines"]), {}):
        values = [r["baselines"][kind][case.metric] for r in here if case.metric in r["baselines"].get(kind, {})]
        if values:
            lines.append(f"| *{kind}* | {spread(values)} | {len(values)} | | | | | |")
    for label in case.methods:
        mine = [r for r in here if r["method"] == label]
        if mine:
            lines.append(line(label, case.metric, mine))
    return "\n".join([*lines, ""])


def line(label: str, metric: str, mine: list[dict[str, Any]]) -> str:
    """One method's row."""
    p = mine[0]["parameters"]
    cells = [label, spread([r["test"][metric] for r in mine]), len(mine), f"{p['tuner']:,}", f"{p['head']:,}",
             f"{mine[0]['adapter_bytes'] / 1024:,.0f}", f"{statistics.median(r['timing']['train_seconds'] for r in mine):.0f}",
             f"{max(r['memory']['peak_bytes'] or 0 for r in mine) / 2**20:,.0f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def spread(values: list[float]) -> str:
    """Mean ± sample standard deviation."""
    sd = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{sd}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "one", "table"])
    parser.add_argument("--only", default="", help="sets, comma-separated")
    parser.add_argument("--methods", default="", help="methods, comma-separated")
    parser.add_argument("--seeds", type=int, default=3, help="how many; with `one`, which")
    args = parser.parse_args()
    if args.what == "one":
        print(json.dumps(run(args.only, args.methods, args.seeds)))
        return
    if args.what == "run":
        run_all([x for x in args.only.split(",") if x], [x for x in args.methods.split(",") if x], args.seeds)
    (HERE.parent / "docs" / "results.md").write_text(table())


if __name__ == "__main__":
    main()

"""A study: methods on real sets, several seeds each, every run kept, and a table of what was measured.

    python benchmarks/NAME.py run [--only cola,mrpc] [--methods lora,dora] [--seeds 3]
    python benchmarks/NAME.py table

Runs are appended to benchmarks/results/NAME.jsonl as they end, and are not repeated: a study can be stopped and gone on with.
Each has a process of its own, as peak memory is a process's. Data and weights lie beside the project; THRIFTY_ASSETS and
THRIFTY_WEIGHTS say where.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ASSETS = Path(os.environ.get("THRIFTY_ASSETS", HERE.parent.parent / "shared" / "assets")) / "data"
WEIGHTS = Path(os.environ.get("THRIFTY_WEIGHTS", HERE.parent / ".cache" / "weights"))

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One data set with the backbone it is adapted from, and what is reported: one metric, or several with commas between."""

    data: str
    model: str
    metric: str
    note: str
    settings: dict[str, Any]
    methods: tuple[str, ...]
    columns: dict[str, str] | None = None
    test_rows: int | None = None
    tables: Callable[[dict[str, list[Row]]], dict[str, list[Row]]] | None = None

    @property
    def metrics(self) -> list[str]:
        """The names of what is reported, the first one first."""
        return self.metric.split(",")

    @property
    def backbone(self) -> str:
        """What `thrifty.tune` takes for the model."""
        return self.model if self.model in ("minilm", "vit-mini") else str(WEIGHTS / self.model)

    @property
    def source(self) -> Any:
        """The folder; or its splits, made anew by ``tables``, with a seeded sample of ``test_rows`` to save time."""
        folder = ASSETS / self.data
        if self.test_rows is None and self.tables is None:
            return folder
        splits = read_splits(folder)
        if self.tables is not None:
            splits = self.tables(splits)
        if self.test_rows is not None:
            splits["test"] = random.Random(0).sample(splits["test"], self.test_rows)
        return splits


def read_splits(folder: Path) -> dict[str, list[Row]]:
    """Split -> rows of a folder of Parquet files."""
    import pyarrow.parquet as pq

    return {file.stem: pq.read_table(file).to_pylist() for file in sorted(folder.glob("*.parquet"))}


def describe(name: str, label: str, seed: int, case: Case, run: Any, test: Mapping[str, float] | None = None) -> Row:
    """The row that is kept of one finished `thrifty.train.Run`; ``test`` if its scores were not measured by the run itself."""
    m = run.metrics
    return {"set": name, "method": label, "seed": seed, "metric": case.metric,
            "test": dict(test) if test is not None else {k: v["value"] for k, v in m["test"].items()},
            "baselines": {b["name"]: {k: v["value"] for k, v in b["test"].items()} for b in m["baselines"]},
            "parameters": m["parameters"], "adapter_bytes": m["adapter_bytes"], "memory": m["memory"], "timing": m["timing"]}


@dataclass(frozen=True)
class Study:
    """``measure`` trains and tests once: (set, method, seed) -> row. ``borrowed`` rows of other studies stand in the table too."""

    script: str
    page: str
    introduction: str
    cases: Mapping[str, Case]
    measure: Callable[[str, str, int], Row]
    borrowed: Callable[[], list[Row]] = field(default=list)
    batch: int = 32  # where a case does not say it

    @property
    def store(self) -> Path:
        """The file of all rows."""
        return HERE / "results" / f"{Path(self.script).stem}.jsonl"

    def stored(self) -> list[Row]:
        """Every row measured so far."""
        return [json.loads(line) for line in self.store.read_text().splitlines()] if self.store.exists() else []

    def run(self, only: list[str], methods: list[str], seeds: int) -> None:
        """Measure what is not measured yet; seeds outermost, so that an interrupted study is balanced."""
        known = {(r["set"], r["method"], r["seed"]) for r in self.stored()}
        for seed in range(seeds):
            for name in only or list(self.cases):
                for label in self.cases[name].methods:
                    if (methods and label not in methods) or (name, label, seed) in known:
                        continue
                    words = [sys.executable, self.script, "one", "--only", name, "--methods", label, "--seeds", str(seed)]
                    said = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
                    self.keep(json.loads(said.splitlines()[-1]))

    def keep(self, row: Row) -> None:
        """Append a row, and say it."""
        self.store.parent.mkdir(exist_ok=True)
        with self.store.open("a") as file:
            file.write(json.dumps(row) + "\n")
        scores = "  ".join(f"{metric} {row['test'][metric]:.4f}" for metric in row["metric"].split(","))
        seconds = row["timing"]["train_seconds"]
        print(f"{row['set']:10s} {row['method']:18s} seed {row['seed']}  {scores}  {seconds:.0f} s", flush=True)

    def table(self) -> str:
        """The page: what was done, and a table for each set."""
        rows = self.stored()
        text = [self.introduction.format(machine=platform.processor() or platform.machine(), cores=os.cpu_count())]
        wanted = sum(3 * len(case.methods) for case in self.cases.values())
        if len(rows) < wanted:
            text.append(f"**Not finished:** {len(rows)} of {wanted} runs are measured; "
                        f"`python benchmarks/{Path(self.script).name} run` goes on where it stopped.\n")
        rows = [*self.borrowed(), *rows]
        for name, case in self.cases.items():
            here = [r for r in rows if r["set"] == name]
            if here:
                text.append(section(name, case, here, self.batch))
        return "\n".join(text)

    def main(self, about: str | None) -> None:
        """The command line."""
        parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("what", choices=["run", "one", "table"])
        parser.add_argument("--only", default="", help="sets, comma-separated")
        parser.add_argument("--methods", default="", help="methods, comma-separated")
        parser.add_argument("--seeds", type=int, default=3, help="how many; with `one`, which")
        args = parser.parse_args()
        if args.what == "one":
            print(json.dumps(self.measure(args.only, args.methods, args.seeds)))
            return
        if args.what == "run":
            self.run([x for x in args.only.split(",") if x], [x for x in args.methods.split(",") if x], args.seeds)
        (HERE.parent / "docs" / self.page).write_text(self.table())


def section(name: str, case: Case, here: list[Row], usual: int = 32) -> str:
    """The table of one data set."""
    epochs, batch = case.settings.get("epochs"), case.settings.get("batch", usual)
    lines = [f"## {name}: {case.model} on {case.data.partition('/')[2]}", "",
             f"{case.note}. {epochs} epochs, batch {batch}.", "",
             f"| method | {' | '.join(case.metrics)} | seeds | method's parameters | head | adapter KiB | train s | peak MiB |",
             "|---" * (7 + len(case.metrics)) + "|"]
    for kind in next((r["baselines"] for r in here if r["baselines"]), {}):
        values = [r["baselines"][kind] for r in here if all(m in r["baselines"].get(kind, {}) for m in case.metrics)]
        if values:
            lines.append(f"| *{kind}* | {scores(case, values)} | {len(values)} | | | | | |")
    for label in dict.fromkeys([*(r["method"] for r in here if r["method"] not in case.methods), *case.methods]):
        if mine := [r for r in here if r["method"] == label]:
            lines.append(line(label, case, mine))
    return "\n".join([*lines, ""])


def line(label: str, case: Case, mine: list[Row]) -> str:
    """One method's row."""
    p, seconds = mine[0]["parameters"], statistics.median(r["timing"]["train_seconds"] for r in mine)
    cells = [label, scores(case, [r["test"] for r in mine]), len(mine), f"{p['tuner']:,}", f"{p['head']:,}",
             f"{(mine[0]['adapter_bytes'] or 0) / 1024:,.0f}", f"{seconds:.0f}",
             f"{max(r['memory']['peak_bytes'] or 0 for r in mine) / 2**20:,.0f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def scores(case: Case, values: list[Mapping[str, float]]) -> str:
    """Mean ± sample standard deviation of every metric."""
    return " | ".join(spread([v[metric] for v in values]) for metric in case.metrics)


def spread(values: list[float]) -> str:
    """Mean ± sample standard deviation."""
    sd = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{sd}"

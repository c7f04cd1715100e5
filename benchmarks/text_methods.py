"""The text methods that need one data set and no saved adapter, on real data, three seeds each.

    python benchmarks/text_methods.py run [--only stsb] [--methods vera,lst] [--seeds 3]
    python benchmarks/text_methods.py table        # writes docs/text-methods.md from what was measured

STS-B is set up as in benchmarks/foundation.py, whose rows of full fine-tuning, linear probe, LoRA and the adapters of Houlsby and
Pfeiffer stand in the same table. Rates are those that `thrifty tune` takes by itself, unless RATES says otherwise.
"""
from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import foundation
from study import ASSETS, Case, Row, Study, describe, read_splits

import thrifty
from thrifty.data.walks import corpus, read_triples
from thrifty.methods import make

STSB = ("adalora", "dynamic-rank-dora", "vera", "lora-fa", "diff-pruning", "diff-pruning unstructured", "lhuc",
        "compacter", "compacter++", "phm-adapter", "low-rank-adapter", "bapna", "mam", "unipelt", "u-tuning", "res-tuning",
        "res-tuning-bypass", "lst", "adapter-drop", "adapter-drop robust", "p-tuning", "p-tuning-v2", "k-adapter",
        "knowledge-adapter")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "diff-pruning unstructured": ("diff-pruning", {"structured": False}),
    "adapter-drop": ("adapter-drop", {"skip": 3}), "adapter-drop robust": ("adapter-drop", {"robust": True}),
    "k-adapter": ("k-adapter", {"width": 384}),
}
# Rates on T5 and on stories15m, without a new head: of one order for all of one kind.
RATES = {"flan-t5-small": {"full": 3e-4, "lora": 5e-3, "houlsby": 3e-3, "compacter": 5e-3, "bapna": 3e-3, "lst": 3e-3, "ia3": 2e-2,
                           "t-few": 2e-2},
         "stories15m": {"mam": 6e-3, "bapna": 6e-3, "pfeiffer": 6e-3, "lhuc": 3e-2}}


def keep_short(splits: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """WebNLG with one or two triples per row."""
    return {name: [row for row in rows if int(row["size"]) <= 2] for name, rows in splits.items()}


CASES = {
    "stsb": Case("text/glue_stsb", "minilm", "pearson", foundation.CASES["stsb"].note, foundation.CASES["stsb"].settings, STSB),
    "copa": Case("text/superglue_copa", "flan-t5-small", "accuracy", "the official validation split is the test split; the right "
                 "choice is the one that is likeliest per token; no head", {"epochs": 4, "batch": 8, "baselines": False},
                 ("ia3", "t-few", "lora")),
    "webnlg": Case("text/webnlg2017", "flan-t5-small", "bleu", "300 training rows and 60 test rows of one or two triples",
                   {"limit": 300, "epochs": 2, "batch": 8, "max_length": 96, "max_new_tokens": 48, "baselines": False,
                    "allow_leak": True, "task": "seq2seq-generation"},
                   ("full", "lora", "houlsby", "compacter", "bapna", "lst", "ia3"), {"source": "source", "target": "refs"},
                   60, keep_short),
    "e2e": Case("text/e2e_nlg", "stories15m", "bleu", foundation.CASES["e2e"].note, foundation.CASES["e2e"].settings,
                ("mam", "bapna", "pfeiffer", "lhuc"), {"source": "mr", "target": "refs"}, 60, foundation.divide_e2e),
}


def measure(name: str, label: str, seed: int) -> Row:
    """Train and test once; returns the row that is kept."""
    case = CASES[name]
    method, own = VARIANTS.get(label, (label, {}))
    settings = {**case.settings, "seed": seed, "baselines": False, "rate": RATES.get(case.model, {}).get(label)}
    if case.columns:
        settings["columns"] = case.columns
    with tempfile.TemporaryDirectory() as out:
        if label == "knowledge-adapter":
            settings |= {"start": str(learn_facts(case, seed, Path(out) / "facts")), "rate": 2e-3}
        done = thrifty.tune(case.backbone, case.source, make(method, **own), Path(out) / "run", progress=False, settings=settings)
    return describe(name, label, seed, case, done)


def learn_facts(case: Case, seed: int, out: Path) -> Path:
    """The first phase of knowledge adapters: guess masked words on walks through the facts of WebNLG, which DBpedia states."""
    facts = [dict(zip(("head", "relation", "tail"), (part.strip().replace("_", " ") for part in triple.split("|")), strict=True))
             for row in read_splits(ASSETS / "text/webnlg2017")["train"] for triple in row["triples"] if triple.count("|") == 2]
    triples = read_triples({key: [fact[key] for fact in facts] for key in facts[0]})
    texts = corpus(triples, {triple.relation: triple.relation for triple in triples}, count=1, length=9, seed=seed)
    run = thrifty.tune(case.backbone, {"train": texts}, make("knowledge-adapter"), out, progress=False, task="masked-language",
                       limit=640, epochs=1, batch=16, rate=1e-3, seed=seed, baselines=False, max_length=64)
    return run.adapter


SAID = "; ".join(f"on {model} " + ", ".join(f"{name} {rate:g}" for name, rate in own.items()) for model, own in RATES.items())
INTRODUCTION = f"""# Text methods on real data

Made by `benchmarks/text_methods.py` from `benchmarks/results/text_methods.jsonl`. Mean ± sample standard deviation over seeds.
Each method has its defaults and the rate that `thrifty tune` takes by itself, but on models that get no new head:
{SAID}.
No rate was searched for on these sets. Early stopping looks at a selection split carved out of the training rows; the test split
was read once per run. Small training subsets and few epochs: the numbers compare methods, they are not records. Rows of `full`,
`linear-probe`, `lora`, `houlsby`, `pfeiffer` and `prefix` on STS-B and E2E are those of [results.md](results.md). The knowledge
adapter first guesses masked words on 640 walks through the facts of WebNLG. Times are rough, as the machine
({{machine}}, {{cores}} cores) did other work too; peak memory is the resident set of the whole process.
"""


def borrow() -> list[Row]:
    """What the foundation measured on the same sets."""
    known = ("full", "linear-probe", "lora", "houlsby", "pfeiffer", "prefix")
    return [row for row in foundation.STUDY.stored() if row["set"] in ("stsb", "e2e") and row["method"] in known]


STUDY = Study(__file__, "text-methods.md", INTRODUCTION, CASES, measure, borrow)

if __name__ == "__main__":
    STUDY.main(__doc__)

"""The foundation's methods on real data, three seeds each, beside full fine-tuning, a linear head and HF PEFT's LoRA.

    python benchmarks/foundation.py run [--only cola,mrpc] [--methods lora,dora] [--seeds 3]
    python benchmarks/foundation.py table          # writes docs/results.md from what was measured

Every method gets the same rows, order of the data, number of epochs, schedule and stopping rule, and one learning rate that is
the same on all sets (RATES). PEFT's LoRA is injected into the same model and trained by
the same loop, with the settings of ours.
"""
from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from typing import Any

from study import Case, Row, Study, describe

import thrifty
from thrifty.core import Attachment, Method


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
        for name in at.base:  # PEFT freezes all that is not its own, the new head too
            at.model.get_parameter(name).requires_grad_(True)
        at.train_matching("*.lora_A.*|*.lora_B.*")


def divide_e2e(splits: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """E2E by meaning representation: of the dev part most as pairs to train on, the rest and the test part with all references."""
    dev, test = (gather(splits[name]) for name in ("validation", "test"))
    random.Random(0).shuffle(dev)
    pairs = [{"mr": row["mr"], "refs": [ref]} for row in dev[:427] for ref in row["refs"]]
    return {"train": pairs, "validation": dev[427:487], "test": test}


def gather(rows: list[Row]) -> list[Row]:
    """One row per meaning representation, with all its references."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["mr"], []).append(row["ref"])
    return [{"mr": mr, "refs": refs} for mr, refs in found.items()]


TEXT = ("full", "linear-probe", "bitfit", "layernorm", "lora", "lora all", "rslora", "lora+", "peft-lora", "dora", "ia3", "houlsby",
        "pfeiffer", "parallel-adapter", "prefix", "prompt")
CORE = tuple(label for label in TEXT if label not in ("lora all", "rslora", "lora+"))
CASES = {
    "cola": Case("text/glue_cola", "minilm", "matthews",
                 "all 8 551 training rows, as a sentence encoder leaves the majority class late (on 2 000 rows no method did); the "
                 "official dev split is the test split; 16 of its sentences also stand in train",
                 {"epochs": 3, "batch": 32, "allow_leak": True},
                 ("full", "linear-probe", "bitfit", "lora", "peft-lora", "houlsby")),
    "mrpc": Case("text/glue_mrpc", "minilm", "accuracy", "480 of 3 667 training rows; the official dev split is the test split",
                 {"limit": 480, "epochs": 2, "batch": 8}, CORE),
    "stsb": Case("text/glue_stsb", "minilm", "pearson",
                 "960 of 5 749 training rows; the official dev split is the test split; 6 of its pairs also stand in train",
                 {"limit": 960, "epochs": 2, "batch": 8, "allow_leak": True}, TEXT),
    "rsscn7": Case("image/rsscn7", "mobilenetv2", "accuracy", "400 of 805 training images; 400 of 1 001 test images",
                   {"limit": 400, "epochs": 4, "batch": 16, "evaluations": 0.5, "head_rate": 1e-2},
                   ("full", "linear-probe", "bitfit", "layernorm", "lora pointwise"), test_rows=400),
    "e2e": Case("text/e2e_nlg", "stories15m", "bleu",
                "training rows are of the official dev split (train is not there): 480 pairs of 427 meaning representations; 60 "
                "meaning representations of the official test split with all references",
                {"limit": 480, "epochs": 1, "batch": 8, "max_length": 160, "max_new_tokens": 48, "baselines": False},
                ("full", "layernorm", "lora", "lora all", "peft-lora", "ia3", "houlsby", "prefix", "prompt"),
                {"source": "mr", "target": "refs"}, test_rows=60, tables=divide_e2e),
}
# LoRA+'s is that of A, so that the geometric mean of its two rates is LoRA's: at 2e-3 a first run on STS-B ended at 0.05. The
# prefix network's was chosen on validation rows of STS-B with a seed outside the study (0.42 at 1e-3, 0.55 at 3e-4).
RATES = {"full": 1e-4, "linear-probe": 1e-2, "bitfit": 3e-3, "layernorm": 3e-3, "lora": 2e-3, "lora+": 5e-4, "peft-lora": 2e-3,
         "dora": 2e-3, "ia3": 1e-2, "houlsby": 2e-3, "pfeiffer": 2e-3, "parallel-adapter": 2e-3, "prefix": 3e-4, "prompt": 1e-1}
# A model of stories has more to unlearn and no new head: three times those rates, which validation rows asked for with a seed
# outside the study (BLEU 21 at 1e-3 for all weights; LoRA 7.9 at 2e-3, 8.1 at 6e-3; prefix 7.6 at 1e-3).
THRICE = ("layernorm", "lora", "peft-lora", "ia3", "houlsby", "prefix", "prompt")
WRITING = {"full": 1e-3, **{label: 3 * RATES[label] for label in THRICE}}
# Batch norms keep their statistics, so what scales and shifts them is sensitive; and the new head wants more than a trunk of
# fifty layers bears, so it has a rate of its own here (on validation images, 7 classes: norms at 3e-3 with that head 0.36).
LOOKING = {"bitfit": 1e-3, "layernorm": 1e-3, "lora pointwise": 1e-3}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora all": ("lora", {"where": "attn.?|mlp.*"}), "rslora": ("lora", {"stable": True}), "lora+": ("lora", {"ratio": 16.0}),
    "lora pointwise": ("lora", {"where": "*expand_1x1.convolution|*reduce_1x1.convolution"}),
}


def method_for(label: str, model: str) -> Method:
    """The method that a row of the table stands for."""
    from thrifty.methods import find

    if label == "peft-lora":
        return PeftLoRA(targets="q_proj,v_proj" if model == "stories15m" else "query,value")
    name, settings = VARIANTS.get(label, (label, {}))
    return find(name).make(**settings)


def measure(name: str, label: str, seed: int) -> Row:
    """Train and test once; returns the row that is kept."""
    case = CASES[name]
    rates = {**RATES, **{"stories15m": WRITING, "mobilenetv2": LOOKING}.get(case.model, {})}
    rate = rates.get(label) or rates[VARIANTS[label][0]]
    with tempfile.TemporaryDirectory() as out:
        done = thrifty.tune(case.backbone, case.source, method_for(label, case.model), out, progress=False, overwrite=True,
                            settings={**case.settings, "seed": seed, "rate": rate,
                                      "baselines": label == "full" and case.settings.get("baselines", True),
                                      **({"columns": case.columns} if case.columns else {})})
    return describe(name, label, seed, case, done)


INTRODUCTION = """# Results of the foundation

Made by `benchmarks/foundation.py` from `benchmarks/results/foundation.jsonl`. Mean ± sample standard deviation over seeds. Each
method has one learning rate, the same on all sets with MiniLM:
""" + ", ".join(f"{k} {v:g}" for k, v in RATES.items()) + """;
with stories15m, which has no new head, """ + ", ".join(f"{k} {v:g}" for k, v in WRITING.items()) + """;
with MobileNetV2, whose head learns at 0.01, """ + ", ".join(f"{k} {v:g}" for k, v in LOOKING.items()) + """.
Those of the last two lines were looked for on validation rows with another seed (see the script). The others were fixed before
these runs but two: LoRA+ ended at 0.05 on STS-B in a first run at LoRA's rate, and the prefix network's was
chosen on validation rows of STS-B with another seed. Early stopping looks at a selection split carved out of the training rows;
the test split was read once per run. The linear head and the majority class saw the same training rows. PEFT's LoRA runs in the
same loop with the settings of `lora`. Small training subsets and few epochs: the numbers compare methods, they are not records.
Times are rough, as the machine ({machine}, {cores} cores) did other work too; peak memory is the resident set of the whole process.

How to read it. MRPC with 480 rows separates no methods: all lie within two points of the majority class. On CoLA one rate for
all sets is too high for Houlsby's adapters and BitFit: in two of three seeds they never left the majority class, hence the
spread; at their size of data and rate, only full fine-tuning and LoRA (ours and PEFT's alike, within two deviations) are off
it. On STS-B, where rows are few, the small methods are level with full fine-tuning or ahead of it. The *linear* line is a head
fitted to kept features with its regularisation chosen on the selection split; `linear-probe` trains the same head by steps, few
here, and so ends lower on pictures. E2E has one epoch of 480 pairs for a model of children's stories: BLEU tells that methods
learn at all, and three seeds of 60 meaning representations cannot order LoRA, its PEFT twin and Houlsby's adapters.
"""


STUDY = Study(__file__, "results.md", INTRODUCTION, CASES, measure)

if __name__ == "__main__":
    STUDY.main(__doc__)

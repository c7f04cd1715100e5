"""The methods for images on real data, by VTAB-1k's protocol in small, three seeds each.

    python benchmarks/vision_methods.py run [--only rsscn7/vit-mini] [--methods ssf,fact] [--seeds 3]
    python benchmarks/vision_methods.py table      # writes docs/vision-methods.md and its pictures from what was measured

Of every set 800 pictures are for training and 200 for choosing: each method is tried at half and at twice its own rate with a seed
outside the study (TRIAL), and the better rate on the 200 is kept. Then it trains on all 1000, from three seeds, keeps its last
weights, and is asked the test pictures once. The 200 are not looked at in that last training but for one evaluation behind its end.
"""
from __future__ import annotations

import functools
import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

from picture import scatter
from study import ASSETS, HERE, WEIGHTS, Case, Row, Study, describe, read_splits

import thrifty
from thrifty.methods import make

TRIAL = 100  # the seed of the search
ON_TOKENS = ("full", "linear-probe", "bitfit", "layernorm", "lora", "vpt", "vpt-shallow", "adaptformer", "convpass", "ssf",
             "repadapter", "fact", "consolidator", "kadaptation", "spt", "spt-adapter", "noah", "vqt", "expres", "head2toe",
             "pixel-prompt")
ON_CONVOLUTIONS = ("full", "linear-probe", "bitfit", "conv-adapter", "ssf", "head2toe", "l2-sp", "delta", "bss", "stochnorm",
                   "bi-tuning", "pixel-prompt", "vpt-pad")
SIDES = {"resnet50": 96, "mobilenetv2": 96, "dinov2-small": 98}  # pixels; 224 would cost five times as much
NOTE = ("1000 training pictures (800 and 200 to choose the rate, in an order drawn once), {test} test pictures. {side}")
SETTINGS = {"epochs": 6, "batch": 32, "head_rate": 1e-2, "baselines": False}


def cases() -> dict[str, Case]:
    """Every set with every trunk that it is tried on."""
    found = {}
    for model, methods, sets in (("vit-mini", ON_TOKENS, ("rsscn7", "caltech101", "digits")),
                                 ("resnet50", ON_CONVOLUTIONS, ("rsscn7",)),
                                 ("mobilenetv2", ("full", "linear-probe", "bitfit", "tinytl", "l2-sp", "bss"), ("rsscn7",)),
                                 ("dinov2-small", ("full", "linear-probe", "lora", "vpt", "adaptformer", "ssf"), ("rsscn7",))):
        side = f"Pictures are resized to {SIDES[model]} pixels" if model in SIDES else "Pictures are resized to 32 pixels"
        for name in sets:
            found[f"{name}/{model}"] = Case(f"image/{name}", model, "accuracy", NOTE.format(test=500, side=side), SETTINGS, methods,
                                            test_rows=500)
    return found


CASES = cases()


@functools.cache
def pictures(case: Case) -> dict[str, list[Row]]:
    """800, 200 and the test pictures of a set; the first two come from its training and validation splits, mixed with seed 0."""
    splits, draw = read_splits(ASSETS / case.data), random.Random(0)
    pool = [*splits["train"], *splits.get("validation", [])]
    draw.shuffle(pool)
    rest = min(200, len(pool) // 5)
    count = min(1000, len(pool))
    return {"train": pool[rest:count], "validation": pool[:rest], "test": draw.sample(splits["test"], case.test_rows or 500)}


def backbone(case: Case, spare: Path) -> str:
    """The trunk, told to make its pictures smaller: squares of that side, whatever their proportions were."""
    if case.model not in SIDES:
        return case.model
    side, source, made = SIDES[case.model], WEIGHTS / case.model, spare / case.model
    made.mkdir(exist_ok=True)
    for file in source.iterdir():
        if not (made / file.name).exists():
            os.symlink(file.resolve(), made / file.name)
    about = json.loads((source / "preprocessor_config.json").read_text())
    about |= {"image_processor_type": "BitImageProcessor", "size": {"height": side, "width": side}, "do_center_crop": False}
    (made / "preprocessor_config.json").unlink()
    (made / "preprocessor_config.json").write_text(json.dumps(about))
    return str(made)


def tune(case: Case, label: str, data: dict[str, list[Row]], seed: int, rate: float, out: Path) -> Any:
    """One training that looks at the validation pictures behind its end only."""
    settings = {**case.settings, **({"head_rate": None} if label == "linear-probe" else {})}
    return thrifty.tune(backbone(case, out), data, make(label), out / "run", progress=False, overwrite=True, allow_leak=True,
                        seed=seed, rate=rate, patience=0, evaluations=0.01, **settings)


def search(case: Case, label: str, out: Path) -> dict[str, float]:
    """Accuracy on the 200 pictures at each rate that is tried. The test pictures take no part."""
    own, chosen = make(label).start_rate(), pictures(case)
    data = {**chosen, "test": chosen["validation"]}
    found = {}
    for rate in (own / 2, own * 2):
        found[f"{rate:g}"] = tune(case, label, data, TRIAL, rate, out).metrics["test"]["accuracy"]["value"]
    return found


def measure(name: str, label: str, seed: int) -> Row:
    """Choose a rate, unless the first seed has; train and test once."""
    case, chosen = CASES[name], pictures(CASES[name])
    with tempfile.TemporaryDirectory() as out:
        known = [row for row in STUDY.stored() if (row["set"], row["method"]) == (name, label)]
        tried = known[0]["tried"] if known else search(case, label, Path(out))
        data = {**chosen, "train": [*chosen["train"], *chosen["validation"]]}
        run = tune(case, label, data, seed, float(max(tried, key=tried.__getitem__)), Path(out))
        return {**describe(name, label, seed, case, run), "tried": tried}


INTRODUCTION = """# Methods for images

Made by `benchmarks/vision_methods.py` from `benchmarks/results/vision_methods.jsonl`. Mean ± sample standard deviation over seeds.
VTAB-1k's protocol in small: the rate of each method is the better of two (half and twice its own) on 200 pictures that did not
train, with a seed outside the study; then all 1000 train, the last weights are kept, and the test pictures are asked once. The head
learns at 0.01, that of the linear probe at the rate that was found. Six epochs and small pictures: the numbers compare methods,
they are not records. Times are rough, as the machine ({machine}, {cores} cores) did other work too; peak memory is the resident
set of the whole process.
"""


class Pictured(Study):
    """A study whose page shows accuracy against trained parameters for every set."""

    def table(self) -> str:
        """The page, with a picture for each set; the pictures are written beside it."""
        page, shown = super().table(), HERE.parent / "docs" / "pictures"
        for name in self.cases:
            rows = [row for row in self.stored() if row["set"] == name]
            if len(rows) < 2:
                continue
            shown.mkdir(exist_ok=True)
            file = shown / f"{name.replace('/', '-')}.svg"
            points: dict[str, list[tuple[float, float]]] = {}
            for row in rows:
                points.setdefault(row["method"], []).append((row["parameters"]["tuner"], row["test"]["accuracy"]))
            file.write_text(scatter(points, f"{name}: accuracy against trained parameters"))
            page = page.replace(f"\n## {name}:", f"\n![accuracy against trained parameters](pictures/{file.name})\n\n## {name}:")
        return page


STUDY = Pictured(__file__, "vision-methods.md", INTRODUCTION, CASES, measure)

if __name__ == "__main__":
    STUDY.main(__doc__)

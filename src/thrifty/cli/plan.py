"""`thrifty plan`: what a training would take, before anything is loaded."""
from __future__ import annotations

import argparse
import json

from thrifty.cli.parsing import Parser, settle
from thrifty.planning import plan

EXAMPLES = (
    "thrifty plan --model minilm --data cityline --memory 1GiB --time 10m",
    "thrifty plan --model ./llama --method lora,dora,full --batch 8 --length 512 --rows 10000 --memory 24GiB --time 1h",
    "thrifty plan --model ./vit --image-size 224 --batch 32 --json",
)
ABOUT = ("Predict for each method what a training takes: memory, time, the adapter's size, and what it adds to later answers. "
         "Needs only the model's configuration, no weights: one step is rehearsed on tensors without numbers.")
APART = ("model", "method", "json", "quiet")
KINDS = {"labels": "int | None", "length": "int | None", "image_size": "int | None", "rows": "int | None", "batch": "int",
         "accumulate": "int", "epochs": "float"}


def parser() -> Parser:
    """Its options."""
    made = Parser("plan", ABOUT, EXAMPLES)
    made.add_argument("--model", required=True, help="as for `thrifty tune`; of a folder or a hub id config.json is enough")
    made.add_argument("--method", default="all", metavar="A,B,...", help="methods (default: all)")
    made.add_argument("--data", help="as for `thrifty tune`; without it rows are invented")
    made.add_argument("--task", help="what the rows are for (default: by the data, or by the model)")
    made.add_argument("--labels", metavar="N", help="classes of invented rows (default: 2)")
    made.add_argument("--length", metavar="N", help="tokens of a row; of real ones the most (default: as `thrifty tune`)")
    made.add_argument("--image-size", metavar="N", help="width of invented pictures (default: the model's)")
    made.add_argument("--rows", metavar="N", help="training rows that there would be, where there is no --data")
    made.add_argument("--batch", metavar="N", help="rows that go through the model at once (default: 32)")
    made.add_argument("--accumulate", metavar="N", help="batches that are summed up before each step (default: 1)")
    made.add_argument("--epochs", metavar="X", help="passes over the training rows (default: as `thrifty tune`)")
    made.add_argument("--precision", help="auto, float32 or bfloat16 (default: auto)")
    made.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: an accelerator if there is one)")
    made.add_argument("--checkpointing", action="store_true", default=None, help="compute activations twice, keep none")
    made.add_argument("--memory", metavar="AMOUNT", help="most bytes of tensors, such as 8GiB")
    made.add_argument("--time", metavar="AMOUNT", help="most time, such as 90s, 30m or 1h30m")
    made.add_argument("--json", action="store_true", help="an object, for programs")
    made.add_argument("--quiet", action="store_true", help="show no progress")
    return made


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Print the plan.

    Raises:
        NoSuchSetting: a model, method, setting, unit or amount that does not exist.
    """
    said = {name: value for name, value in vars(args).items() if name not in APART and value is not None}
    method = "all" if args.method == "all" else [name.strip() for name in args.method.split(",") if name.strip()]
    found = plan(args.model, method, progress=not args.quiet, **settle(said, KINDS))
    print(json.dumps(found.plain(), indent=1, ensure_ascii=False) if args.json else found)

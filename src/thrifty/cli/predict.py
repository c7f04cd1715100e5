"""`thrifty predict`: answers to new rows."""
from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from thrifty.cli.parsing import Parser
from thrifty.core.errors import NoSuchSetting
from thrifty.train import predict, zero_shot
from thrifty.train.files import write_lines
from thrifty.train.zero_shot import WAYS

EXAMPLES = (
    'thrifty predict runs/first --text "The lamp at our corner has been dark for a week"',
    "thrifty predict runs/first --data new.csv --out answers.jsonl",
    "thrifty predict runs/first --data cityline --split validation",
    "thrifty predict runs/both --task-name rte --data new.csv      # of several tasks that were learned together",
    'thrifty predict --method zero-shot --classes "tabby cat,fire truck" --model ./clip --data photos/',
    "thrifty predict shared/adapter --data new.csv --model ./all-MiniLM-L6-v2",
)


def parser() -> Parser:
    """Its options."""
    made = Parser("predict", "Answer new rows with a trained adapter; one JSON object per line.", EXAMPLES)
    made.add_argument("run", nargs="?", help="folder of a run, or of an adapter")
    made.add_argument("--method", help="zero-shot, or tpt: no adapter, but an image-text model and names of classes")
    made.add_argument("--classes", metavar="NAMES", help="with zero-shot: names of the classes, separated by commas")
    made.add_argument("--templates", help="with zero-shot: as for thrifty tune")
    made.add_argument("--data", help="rows to answer, with the columns of the training data; labels are not needed")
    made.add_argument("--text", action="append", default=[], help="a text to answer; may be given several times")
    made.add_argument("--task-name", metavar="NAME", help="which of the tasks that the adapter learned together")
    made.add_argument("--split", help="which split of the data, where it has several")
    made.add_argument("--model", help="the base model, if it is no longer where it was in training")
    made.add_argument("--out", metavar="FILE", help="write the lines there (default: to the screen)")
    made.add_argument("--batch", type=int, default=32, metavar="N", help="rows at once (default: 32)")
    made.add_argument("--device", default="auto", help="as for thrifty tune (default: auto)")
    return made


def ask_adapter(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The answers of the adapter in ``run``.

    Raises:
        NoSuchSetting: there is no ``run``, there are settings of zero-shot, or neither or both of data and texts.
    """
    if args.run is None:
        raise NoSuchSetting("required: run, the folder of one; or --method zero-shot (thrifty predict --help)")
    for name in ("classes", "templates"):
        if getattr(args, name) is not None:
            raise NoSuchSetting(f"--{name} goes with --method zero-shot: an adapter has its own")
    if bool(args.data) == bool(args.text):
        raise NoSuchSetting("thrifty predict needs either --data or --text")
    return predict(args.run, args.data, texts=args.text, model=args.model, split=args.split, batch=args.batch, device=args.device,
                   task_name=args.task_name)


def ask_zero_shot(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The answers of an image-text model.

    Raises:
        NoSuchSetting: another method, something that is missing, or something that zero-shot has no use for.
    """
    if args.method not in WAYS:
        raise NoSuchSetting(f"--method is {' or '.join(WAYS)}, not {args.method!r}: an adapter knows its own method")
    for name in ("model", "classes", "data"):
        if not getattr(args, name):
            raise NoSuchSetting(f"--method {args.method} needs --{name}")
    for name in ("run", "task_name", "text"):
        if getattr(args, name):
            raise NoSuchSetting(f"{getattr(args, name)!r} belongs to an adapter, but --method {args.method} needs none")
    classes = [name.strip() for name in args.classes.split(",")]
    return zero_shot(args.model, args.data, classes, method=args.method, templates=args.templates, split=args.split,
                     batch=args.batch, device=args.device)


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Answer, and print or write.

    Raises:
        NoSuchSetting: see ``ask_adapter`` and ``ask_zero_shot``; or no rows at once.
    """
    if args.batch < 1:
        raise NoSuchSetting(f"batch must be at least 1, not {args.batch}")
    found = ask_zero_shot(args) if args.method else ask_adapter(args)
    if args.out:
        write_lines(Path(args.out), found)
        print(f"{len(found)} answers in {args.out}")
    else:
        for row in found:
            print(json.dumps(row, ensure_ascii=False))

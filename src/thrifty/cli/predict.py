"""`thrifty predict`: answers to new rows."""
from __future__ import annotations

import argparse
import json
from pathlib import Path

from thrifty.cli.parsing import Parser
from thrifty.core.errors import NoSuchSetting
from thrifty.train import predict
from thrifty.train.files import write_lines

EXAMPLES = (
    'thrifty predict runs/first --text "The lamp at our corner has been dark for a week"',
    "thrifty predict runs/first --data new.csv --out answers.jsonl",
    "thrifty predict runs/first --data cityline --split validation",
    "thrifty predict runs/both --task-name rte --data new.csv      # of several tasks that were learned together",
    "thrifty predict shared/adapter --data new.csv --model ./all-MiniLM-L6-v2",
)


def parser() -> Parser:
    """Its options."""
    made = Parser("predict", "Answer new rows with a trained adapter; one JSON object per line.", EXAMPLES)
    made.add_argument("run", help="folder of a run, or of an adapter")
    made.add_argument("--data", help="rows to answer, with the columns of the training data; labels are not needed")
    made.add_argument("--text", action="append", default=[], help="a text to answer; may be given several times")
    made.add_argument("--task-name", metavar="NAME", help="which of the tasks that the adapter learned together")
    made.add_argument("--split", help="which split of the data, where it has several")
    made.add_argument("--model", help="the base model, if it is no longer where it was in training")
    made.add_argument("--out", metavar="FILE", help="write the lines there (default: to the screen)")
    made.add_argument("--batch", type=int, default=32, metavar="N", help="rows at once (default: 32)")
    made.add_argument("--device", default="auto", help="as for thrifty tune (default: auto)")
    return made


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Answer, and print or write.

    Raises:
        NoSuchSetting: neither or both of data and texts.
    """
    if bool(args.data) == bool(args.text):
        raise NoSuchSetting("thrifty predict needs either --data or --text")
    if args.batch < 1:
        raise NoSuchSetting(f"batch must be at least 1, not {args.batch}")
    found = predict(args.run, args.data, texts=args.text, model=args.model, split=args.split, batch=args.batch, device=args.device,
                    task_name=args.task_name)
    if args.out:
        write_lines(Path(args.out), found)
        print(f"{len(found)} answers in {args.out}")
    else:
        for row in found:
            print(json.dumps(row, ensure_ascii=False))

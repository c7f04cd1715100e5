"""`thrifty rank`: which pretrained model, before any is tuned."""
from __future__ import annotations

import argparse
import json
from pathlib import Path

from thrifty.cli.parsing import Parser, pairs
from thrifty.core.errors import NoSuchSetting

EXAMPLES = (
    "thrifty rank --models minilm,./my-bert,./my-llama --data reviews.csv",
    "thrifty rank --models ./resnet50,./dinov2,timm:vit_small_patch16_224 --data photos/ --rows 2000 --out ranked/",
    "thrifty rank --models minilm,./my-bert --data cityline --scores logme,sfda --draws 100",
    "thrifty rank --models ./resnet50,./dinov2 --data photos/ --source imagenet-sample/      # OTCE, too",
)
ABOUT = """\
Rank pretrained models for a data set by transferability scores, without tuning any: every training row is seen once by each
frozen model (kept on disk), every score has an interval, and the models come in the order that the scores agree on. Models that
cannot be loaded are reported and left out; the exit code is then 1.

Where the sources of label-space scores come from:
  nce, leep   ask the classifier that a checkpoint was saved with what it says of your rows, in its own classes (for an ImageNet
              model a thousand; config.json names them in id2label). Models without one, such as plain language models and
              sentence encoders, have no value there, and a score without a value for every model has no voice in the order.
  otce        compares your rows with labelled rows of what the models were trained on: name those with --source.
All other scores look at features only. For numbers as labels (regression) those are asked that are defined for them."""


def parser() -> Parser:
    """Its options."""
    made = Parser("rank", ABOUT, EXAMPLES)
    made.add_argument("--models", help="names with commas between, each as for thrifty tune --model")
    made.add_argument("--data", help="as for thrifty tune; only training rows are looked at")
    made.add_argument("--task", help="as for thrifty tune")
    made.add_argument("--columns", metavar="ROLE=NAME", help="as for thrifty tune")
    made.add_argument("--rows", type=int, default=1000, metavar="N", help="training rows to look at, every class in its share "
                      "(default: 1000; 0 is all, of which parc takes 100 bytes times their square)")
    made.add_argument("--scores", metavar="NAMES", help="with commas between (default: all that the data has a meaning for)")
    made.add_argument("--draws", type=int, default=20, metavar="N", help="of half of the rows, for intervals (default: 20; 0 is "
                      "none)")
    made.add_argument("--source", metavar="DATA", help="labelled rows of what the models were pretrained on: for otce, and for the "
                      "scale of ped")
    made.add_argument("--seed", type=int, default=0, help="of the rows that are drawn (default: 0)")
    made.add_argument("--batch", type=int, default=32, metavar="N", help="rows at once (default: 32)")
    made.add_argument("--device", default="auto", help="as for thrifty tune (default: auto)")
    made.add_argument("--cache", action=argparse.BooleanOptionalAction, default=True, help="keep features for the next time")
    made.add_argument("--out", metavar="FOLDER", help="of ranking.json and ranking.html (default: a new one under rankings/)")
    made.add_argument("--overwrite", action="store_true", help="replace the ranking in --out")
    made.add_argument("--json", action="store_true", help="print what ranking.json holds, for programs")
    made.add_argument("--quiet", action="store_true", help="show no progress")
    return made


def run(args: argparse.Namespace, words: list[str]) -> int:
    """Rank, write, and print; 1 if a model was left out.

    Raises:
        NoSuchSetting: no models or no data; see `thrifty.candidates.rank`.
    """
    from thrifty.candidates import rank
    from thrifty.candidates.writing import refuse_there
    from thrifty.train.folder import free_name

    for name in ("models", "data"):
        if not getattr(args, name):
            raise NoSuchSetting(f"thrifty rank needs --{name}")
    folder = Path(args.out) if args.out else free_name(Path("rankings"), Path(args.data).stem)
    refuse_there(folder, args.overwrite)
    columns = pairs(args.columns.split(","), "--columns") if args.columns else None
    scores = [name.strip() for name in args.scores.split(",")] if args.scores else None
    found = rank(args.models, args.data, task=args.task, columns=columns, rows=args.rows or None, scores=scores, draws=args.draws,
                 source=args.source, seed=args.seed, batch=args.batch, device=args.device, cache=args.cache,
                 progress=not args.quiet)
    found.write(folder, args.overwrite)
    print(json.dumps(found.plain(), indent=1, ensure_ascii=False) if args.json else f"{found}\n\n{folder / 'ranking.html'}")
    return 1 if found.failed else 0

"""Make `vit-mini`: fetch the pictures and the teacher, look at what the teacher sees, train, publish.

    python -m recipes.vit_mini fetch CACHE
    python -m recipes.vit_mini teach CACHE
    python -m recipes.vit_mini train CACHE OUT [--minutes 30]      # again and again until it says that it is over
    python -m recipes.vit_mini publish CACHE OUT
"""
from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from recipes.vit_mini import fetch, pretrain, publish, teach
from recipes.vit_mini.recipe import Recipe

HOME = Path(__file__).resolve().parents[2] / "src" / "thrifty" / "models" / "vit_mini"


def main() -> None:
    """One of the four steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fetch", "teach", "train", "publish"))
    parser.add_argument("cache", type=Path, help="folder of packages, pictures and features (about 900 MB)")
    parser.add_argument("out", type=Path, nargs="?", help="folder of the training: its checkpoint and log.jsonl")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long; the same command goes on")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="of the whole training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--home", type=Path, default=HOME, help="where to publish (default: in the package)")
    args = parser.parse_args()
    if args.what in ("train", "publish") and args.out is None:
        parser.error(f"{args.what} needs OUT")
    torch.set_num_threads(args.threads)
    recipe = Recipe(seed=args.seed, steps=args.steps)
    if args.what == "fetch":
        fetch.fetch(args.cache)
    elif args.what == "teach":
        teach.teach(args.cache, recipe)
    elif args.what == "publish":
        publish.publish(args.cache, args.out, args.home)
    else:
        over = pretrain.Training(args.cache, args.out, recipe).run(args.minutes)
        print("the training is over" if over else "stopped; the same command goes on", flush=True)


if __name__ == "__main__":
    main()

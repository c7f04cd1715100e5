"""Make a model of two real towers: look and read once, train the projections, join and measure.

    python -m recipes.two_tower features CACHE --assets ASSETS --weights WEIGHTS
    python -m recipes.two_tower train CACHE OUT --assets ASSETS --weights WEIGHTS --seeds 3
    python -m recipes.two_tower publish CACHE OUT HOME --assets ASSETS --weights WEIGHTS --seeds 3
"""
from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from recipes.two_tower import features, pretrain, publish
from recipes.two_tower.recipe import Recipe


def main() -> None:
    """One of the three steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("features", "train", "publish"))
    parser.add_argument("cache", type=Path, help="folder of features (about 100 MB)")
    parser.add_argument("out", type=Path, nargs="?", help="folder of the trainings: seed-0, seed-1, …")
    parser.add_argument("home", type=Path, nargs="?", help="folder of the model, outside the project")
    parser.add_argument("--assets", type=Path, required=True, help="folder with data/image and data/multimodal")
    parser.add_argument("--weights", type=Path, required=True, help="folder with mobilenetv2, and other image encoders")
    parser.add_argument("--image", default=Recipe.image, help="the image encoder (default: %(default)s); with dinov2-small "
                        "prompts can enter both towers")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--limit", type=int, help="pictures of each split, for a trial")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    if args.what != "features" and args.out is None or args.what == "publish" and args.home is None:
        parser.error(f"{args.what} needs OUT" + (" and HOME" if args.what == "publish" else ""))
    torch.set_num_threads(args.threads)
    recipe = Recipe(seed=args.seed, steps=args.steps, image=args.image, limit=args.limit)
    towers = features.Towers(args.weights, args.cache, args.image)
    if args.what == "features":
        features.compute(towers, args.assets, recipe)
    elif args.what == "publish":
        publish.publish(towers, args.assets, recipe, args.seeds, args.out, args.home)
    else:
        lessons = pretrain.gather(towers, args.assets, recipe)
        for i in range(args.seeds):
            pretrain.train(lessons, recipe, args.seed + i, args.out / f"seed-{args.seed + i}")


if __name__ == "__main__":
    main()

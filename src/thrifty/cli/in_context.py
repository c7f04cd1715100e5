"""`thrifty in-context`: answers from demonstrations, without any training."""
from __future__ import annotations

import argparse
import shlex
from typing import Any

from thrifty.cli.parsing import Parser, add_settings, field_kinds, read_file, settle
from thrifty.core.errors import NoSuchSetting, nearest
from thrifty.train.asking import Asking
from thrifty.train.in_context import in_context

EXAMPLES = (
    "thrifty in-context --model ./smollm2 --data reviews.csv --shots 8",
    "thrifty in-context --model ./smollm2 --data glue/rte --format flan:rte:0 --choose balanced --out runs/rte",
    "thrifty in-context --model ./smollm2 --data reviews.csv --demonstrations random    # do the labels matter?",
    "thrifty in-context --model ./flan-t5 --data reviews.csv --shots 0",
)
ABOUT = ("Ask a language model to answer the test rows, with training rows as demonstrations in front of each question; nothing "
         "trains. Answers are ranked by their likelihood. Writes a folder like that of `thrifty tune`.")
PLACES = ("model", "data", "out")


def parser() -> Parser:
    """Its options; most are the fields of `thrifty.train.Asking`."""
    made = Parser("in-context", ABOUT, EXAMPLES)
    made.add_argument("--model", help="a local folder or a hub id of a model that writes text")
    made.add_argument("--data", help="a file or folder of tables, cityline (built in), a hub id")
    made.add_argument("--out", help="folder of the run (default: a new one under runs/)")
    made.add_argument("--config", metavar="FILE", help="settings from a .yaml, .toml or .json file; options here override it")
    made.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    made.add_argument("--quiet", action="store_true", help="show no progress")
    add_settings(made.add_argument_group("asking"), Asking)
    return made


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Ask, and print what came out.

    Raises:
        NoSuchSetting: a setting or value that does not exist.
    """
    places, settings = gather(args)
    repeat = shlex.join(["thrifty", *(word for word in words if word not in ("--overwrite", "--quiet"))])
    print(in_context(places["model"], places["data"], places["out"], settings=settings, overwrite=args.overwrite,
                     progress=not args.quiet, command=repeat))


def gather(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the command line and the settings file say together: places, and settings.

    Raises:
        NoSuchSetting: an unknown or missing name.
    """
    kinds = field_kinds(Asking)
    held = read_file(args.config) if args.config else {}
    for name in held:
        if name not in kinds and name not in PLACES:
            raise NoSuchSetting(f"{args.config}: unknown setting {name!r}." + nearest(name, [*PLACES, *kinds], 40))
    places = {name: getattr(args, name) or held.get(name) for name in PLACES}
    for name in ("model", "data"):
        if not places[name]:
            raise NoSuchSetting(f"thrifty in-context needs --{name}")
    said = {name: getattr(args, name) for name in kinds if getattr(args, name) is not None}
    return places, settle({name: value for name, value in held.items() if name in kinds} | said, kinds)

"""`thrifty tune`: the main job."""
from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thrifty.cli.parsing import Parser, add_settings, field_kinds, pairs, read_file, settle, typed
from thrifty.core.errors import NoSuchSetting, nearest
from thrifty.train import Settings, base_to_new, tune
from thrifty.zoo.loading import join_names

EXAMPLES = (
    "thrifty tune --model minilm --data cityline --method lora --out runs/first",
    "thrifty tune --model minilm --data reviews.csv --columns text=review,label=stars --seeds 3",
    "thrifty tune --model ./vit --data photos/ --method lora --set rank=16 --set where='attn.?|mlp.*' --rate 1e-3",
    "thrifty tune --model minilm --data rte=glue/rte --data stsb=glue/stsb --temperature 2 --metric rte=accuracy,stsb=spearman",
    "thrifty tune --models ./resnet50,./mobilenetv2 --data photos/ --method dery --set params=20 --set flops=3",
    "thrifty tune --config study.yaml --out runs/study",
    "thrifty tune --config runs/first/config.json --out runs/again      # the same run once more",
    "thrifty tune --model minilm --data cityline --out runs/first --resume",
    "accelerate launch --num_processes 2 -m thrifty tune --model minilm --data cityline --out runs/two",
)
ABOUT = ("Adapt a model to labelled data with one method. Reads the test split once, at the end, and writes a folder with the "
         "adapter, metrics.json, predictions and a report.")
PLACES = ("model", "data", "method", "out")


def parser() -> Parser:
    """Its options; those of training are the fields of `thrifty.train.Settings`."""
    made = Parser("tune", ABOUT, EXAMPLES)
    made.add_argument("--model", help="minilm or vit-mini (built in: text, pictures), a local folder, a hub id, or timm:NAME")
    made.add_argument("--models", metavar="A,B,...", help="several models for pictures as one, the same as --model zoo:A,B,...: "
                      "for zoo-tuning, hub-pathway and dery, or any other method on what all of them see")
    made.add_argument("--data", action="append", help="a file or folder of tables, a folder or zip archive of images by class, "
                      "cityline (built in), a hub id; several times NAME=DATA to learn several tasks together")
    made.add_argument("--method", help="see `thrifty methods` (default: lora)")
    made.add_argument("--out", help="folder of the run (default: a new one under runs/)")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, such as the method's rank=16")
    made.add_argument("--config", metavar="FILE", help="settings from a .yaml, .toml or .json file; options here override it")
    made.add_argument("--resume", action="store_true", help="go on with the run in --out from its last checkpoint")
    made.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    made.add_argument("--base-to-new", action="store_true", help="of an image-text model: learn the first half of the classes, and "
                      "measure both halves, the second by names alone")
    made.add_argument("--budget", metavar="NAME=AMOUNT", help="what the training may take, such as memory=2GiB,time=30m: refused "
                      "before anything runs if it is predicted not to fit, and kept while it runs")
    made.add_argument("--quiet", action="store_true", help="show no progress")
    add_settings(made.add_argument_group("training"), Settings)
    return made


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Train, and print what came out.

    Raises:
        NoSuchSetting: a setting or value that does not exist.
    """
    places, method, settings = gather(args)
    budget = pairs(args.budget.split(","), "--budget") if args.budget else None
    repeat = shlex.join(["thrifty", *(word for word in words if word not in ("--resume", "--overwrite", "--quiet"))])
    if args.base_to_new:
        if budget:
            raise NoSuchSetting("--budget: a run of --base-to-new is not predicted")
        found = base_to_new(places["model"], places["data"], method, places.get("out"), settings=settings,
                            overwrite=args.overwrite, resume=args.resume, progress=not args.quiet, command=repeat)
        print(json.dumps(found, indent=1))
        return
    done = tune(places["model"], places["data"], method, places.get("out"), settings=settings, resume=args.resume,
                overwrite=args.overwrite, progress=not args.quiet, command=repeat, budget=budget)
    if done.metrics:  # only the main one of several processes has them
        print(done)


def gather(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What the command line and the settings file say together: places, the method with its settings, and settings of training.

    Raises:
        NoSuchSetting: an unknown or missing name.
    """
    kinds = field_kinds(Settings)
    held = read_file(args.config) if args.config else {}
    for name in held:
        if name not in kinds and name not in PLACES:
            raise NoSuchSetting(f"{args.config}: unknown setting {name!r}." + nearest(name, [*PLACES, *kinds], 40))
    places = {"model": one_model(args) or held.get("model"), "data": sources(args.data) or held.get("data"),
              "out": args.out or held.get("out")}
    for name in ("model", "data"):
        if not places[name]:
            raise NoSuchSetting(f"thrifty tune needs --{name}" + (" (minilm and vit-mini are built in)" if name == "model" else
                                                                  " (cityline is built in)"))
    settings = settle({name: value for name, value in held.items() if name in kinds}, kinds)
    said = {name: getattr(args, name) for name in kinds if getattr(args, name) is not None}
    settings |= settle(said, kinds)
    method, extra = choose(args.method, held.get("method"), pairs(args.set, "--set"))
    return places, method, settings | extra


def one_model(args: argparse.Namespace) -> str | None:
    """What ``--model`` or ``--models`` says.

    Raises:
        NoSuchSetting: both do, or of several there is one.
    """
    if args.models is None:
        model: str | None = args.model
        return model
    if args.model is not None:
        raise NoSuchSetting("--model names one model and --models several: give one of the two")
    return join_names(args.models)


def sources(words: list[str] | None) -> str | dict[str, str] | None:
    """What ``--data`` says: one source, or several by the names of their tasks.

    Raises:
        NoSuchSetting: several sources without names, or a name twice.
    """
    if not words or (len(words) == 1 and ("=" not in words[0] or Path(words[0]).exists())):
        return words[0] if words else None
    return pairs(words, "--data")


def choose(named: str | None, held: Any, sets: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The method with its settings, and what ``--set`` said of training instead.

    Raises:
        NoSuchSetting: an unknown method; a key that neither the method nor training has.
    """
    from thrifty.methods import find

    held = {"name": held} if isinstance(held, str) else dict(held or {})
    name = named or held.get("name") or "lora"
    if named and held.get("name") not in (None, named):
        held = {}  # the file's numbers belong to another method
    own, training = field_kinds(find(name)), field_kinds(Settings)
    method, extra = {**settle(held, own), "name": name}, {}
    for key, raw in sets.items():
        if key in own:
            method[key] = typed(key, raw, own[key])
        elif key in training:
            extra[key] = typed(key, raw, training[key])
        else:
            raise NoSuchSetting(f"neither {name} nor training has a setting {key!r}." + nearest(key, [*own, *training], 40))
    return method, extra

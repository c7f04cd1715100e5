"""`thrifty inspect`: what is in a model, and what a method would touch."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import nn

from thrifty import artifact
from thrifty.artifact.files import adapter_folder
from thrifty.cli.parsing import Parser, pairs
from thrifty.cli.tune import choose
from thrifty.core import attach, sites
from thrifty.core.errors import NoSuchSetting
from thrifty.models.outline import outline
from thrifty.train.choosing import choose_method

EXAMPLES = (
    "thrifty inspect minilm",
    "thrifty inspect minilm --method lora --set rank=16 --task text-classification",
    "thrifty inspect ./llama --method prefix --paths",
    "thrifty inspect runs/first        # what a saved adapter holds",
)


def parser() -> Parser:
    """Its options."""
    made = Parser("inspect", "List the sites of a model by role; with --method, what it would touch and how many numbers it would "
                  "train. Needs only the model's configuration, no weights. Of a run or an adapter: what it holds.", EXAMPLES)
    made.add_argument("model", help="minilm or vit-mini (built in), a local folder, a hub id, timm:NAME; or the folder of a run or "
                      "an adapter")
    made.add_argument("--method", help="a method, to see what it would touch")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the method, such as rank=16")
    made.add_argument("--task", help="the form of the model that this task needs (with a head of --labels outputs)")
    made.add_argument("--labels", type=int, default=2, metavar="N", help="outputs of the head (default: 2)")
    made.add_argument("--paths", action="store_true", help="list every site, not one example per role")
    return made


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Print what there is.

    Raises:
        NoSuchSetting: an unknown model, method or setting.
    """
    folder = adapter_folder(args.model)
    if (folder / "adapter.json").is_file():
        print(describe_adapter(folder))
        return
    model = outline(args.model, args.task, args.labels)
    every = sum(p.numel() for p in model.parameters())
    print(f"{type(model).__name__}: {every:,} parameters\n")
    print(describe_sites(model, args.paths))
    if args.method or args.set:
        named, extra = choose(args.method, None, pairs(args.set, "--set"))
        if extra:
            raise NoSuchSetting(f"{next(iter(extra))} is a setting of training, which changes no site")
        print("\n" + describe_method(model, named, bool(args.task), args.paths))


def describe_sites(model: nn.Module, paths: bool) -> str:
    """Roles, how many sites each has, and where."""
    found: dict[str, list[str]] = {}
    for site in sites(model, "*"):
        if site.role != "model":
            found.setdefault(site.role, []).append(site.key)
    wide = max(map(len, found), default=4)
    lines = [f"{'role':<{wide}}  sites  {'paths' if paths else 'for example'}"]
    for role, keys in found.items():
        lines.append(f"{role:<{wide}}  {len(keys):>5}  {keys[0]}")
        lines += [f"{'':<{wide}}         {key}" for key in keys[1:]] if paths else []
    return "\n".join(lines)


def describe_method(model: nn.Module, named: dict[str, Any], head: bool, paths: bool) -> str:
    """What the method would put where, and how much of it; the model is as it was afterwards."""
    at = attach(model, choose_method(named), also_train="head" if head else None)
    try:
        lines = [str(at.summary())]
        if paths:
            lines += [f"  {row.key}  {row.edit}" for row in at.plan] + [f"  {name}  in place" for name in at.base]
        return "\n".join(lines)
    finally:
        at.detach()


def describe_adapter(folder: Path) -> str:
    """What adapter.json says, verified."""
    data = artifact.inspect(folder)
    method, about = data["method"] or {"name": "loaded", "settings": {}}, data["about"]
    places: dict[tuple[str, str], list[str]] = {}
    for row in data["plan"]:
        places.setdefault((row["role"], row["edit"]), []).append(row["path"])
    settings = ", ".join(f"{k}={v}" for k, v in method["settings"].items())
    numel = sum(_size(t["shape"]) for t in data["tensors"].values())
    lines = [f"{method['name']} ({settings}), {numel:,} numbers in {len(data['tensors'])} tensors"]
    lines += [f"  {role:<12} {len(paths):>4} × {edit}, for example {paths[0]}" for (role, edit), paths in places.items()]
    lines += [f"  in place     {name}" for name in data["trained"]]
    known = ("model", "task", "labels", "metric", "image", "measured")
    lines += [f"{key}: {about[key]}" for key in known if about.get(key) is not None]
    return "\n".join(lines)


def _size(shape: list[int]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total

"""`thrifty convert`: between this library's adapter folders and those of Hugging Face PEFT."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from thrifty import artifact
from thrifty.artifact.files import adapter_folder
from thrifty.cli.parsing import Parser
from thrifty.core.errors import NoSuchSetting, ThriftyError
from thrifty.models import load
from thrifty.train.forms import form_of

EXAMPLES = (
    "thrifty convert runs/first --to peft --out first-peft/",
    "thrifty convert downloaded-lora/ --to thrifty --model ./llama --task causal-generation --out lora/",
)


def parser() -> Parser:
    """Its options."""
    made = Parser("convert", "Turn an adapter folder of one library into one that the other loads with equal outputs, or say by "
                  "name what cannot be expressed.", EXAMPLES)
    made.add_argument("adapter", help="folder of a run or an adapter; or a folder that PEFT wrote")
    made.add_argument("--to", required=True, choices=("peft", "thrifty"), help="what to turn it into")
    made.add_argument("--out", required=True, help="a new folder for the result")
    made.add_argument("--model", help="the base model (default: the one it was trained on, if the folder says)")
    made.add_argument("--task", help="the form of the base model, for folders of PEFT that do not say")
    made.add_argument("--labels", metavar="A,B,...", help="label names, where the task has any and the folder does not say")
    return made


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Convert, and say where the result is.

    Raises:
        NoSuchSetting: the model or its form is not known.
    """
    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ThriftyError(f"{out} exists and is not empty: choose a new folder")
    (to_peft if args.to == "peft" else to_thrifty)(args, out)
    print(f"adapter for {args.to} in {out}")


def to_peft(args: argparse.Namespace, out: Path) -> None:
    """This library's folder as PEFT's."""
    from thrifty.artifact import peft

    folder = adapter_folder(args.adapter)
    about = artifact.inspect(folder)["about"]
    model = base(args, about.get("model"), *(form_of(about) if "task" in about else (None, None)))
    peft.write(artifact.load(model, folder), out, base_name=args.model or about.get("model"))


def to_thrifty(args: argparse.Namespace, out: Path) -> None:
    """PEFT's folder as this library's."""
    from thrifty.artifact import peft
    from thrifty.artifact.files import read_json

    said = read_json(Path(args.adapter) / "adapter_config.json")
    model = base(args, said.get("base_model_name_or_path"), None, None)
    artifact.save(peft.read(args.adapter, model), out, unchanged=True)


def base(args: argparse.Namespace, named: Any, task: Any, labels: Any) -> Any:
    """The base model, from what the folder and the command line say.

    Raises:
        NoSuchSetting: neither says which, or for which task.
    """
    name, task = args.model or named, args.task or task
    if not name:
        raise NoSuchSetting("the folder does not say its base model: give --model")
    if not task:
        raise NoSuchSetting("the folder does not say its task, which decides the form of the base model: give --task")
    labels = [part.strip() for part in args.labels.split(",")] if args.labels else labels
    return load(name, task, labels).model

"""`thrifty compress`: a smaller image-text model out of a larger one."""
from __future__ import annotations

import argparse
from typing import Any

from thrifty.cli.parsing import Parser, add_settings, field_kinds, settle
from thrifty.core.errors import NoSuchSetting
from thrifty.tinyclip import Distilling, compress

EXAMPLES = (
    "thrifty compress --teacher ./clip --data pairs.parquet --shape 12x512/6x512 --out small/",
    "thrifty compress --teacher ./clip --data flickr/ --keep 0.75,0.5,0.25 --parts hidden,heads,inner,layers --out smaller/",
)
ABOUT = ("Distil a CLIP model into smaller ones that begin with its weights (TinyCLIP), on pictures with captions. Writes a folder "
         "with a complete model for every stage.")


def parser() -> Parser:
    """Its options; those of distilling are the fields of `thrifty.tinyclip.Distilling`."""
    made = Parser("compress", ABOUT, EXAMPLES)
    made.add_argument("--teacher", required=True, help="a local folder or a hub id of a CLIPModel")
    made.add_argument("--data", required=True, help="a file or folder of tables with pictures and captions")
    made.add_argument("--out", required=True, help="a new folder for the students")
    made.add_argument("--shape", action="append", default=[], metavar="LxW/LxW", help="layers and width of the image tower and of "
                      "the text tower, chosen by hand; several times for several stages")
    made.add_argument("--keep", metavar="X,Y,...", help="shares of the teacher's blocks that gates leave, one for each stage "
                      "(default without --shape: 0.75,0.5,0.25)")
    made.add_argument("--quiet", action="store_true", help="show no progress")
    add_settings(made.add_argument_group("distilling"), Distilling)
    return made


def run(args: argparse.Namespace, words: list[str]) -> None:
    """Compress, and say what came out.

    Raises:
        NoSuchSetting: shares that are no numbers.
    """
    kinds = field_kinds(Distilling)
    given = settle({name: getattr(args, name) for name in kinds if getattr(args, name) is not None}, kinds)
    record = compress(args.teacher, args.data, args.out, shapes=args.shape, keep=shares(args.keep), settings=given,
                      progress=not args.quiet)
    for name, part in [("teacher", record["teacher"]), *((f"{args.out}/{part['folder']}", part) for part in record["stages"])]:
        print(line(name, part))


def shares(said: str | None) -> list[float]:
    """Numbers with commas between them.

    Raises:
        NoSuchSetting: one of them is none.
    """
    try:
        return [float(part) for part in said.split(",")] if said else []
    except ValueError:
        raise NoSuchSetting(f"--keep takes shares such as 0.75,0.5,0.25, not {said!r}") from None


def line(name: str, part: dict[str, Any]) -> str:
    """A model's size and how well it finds."""
    size, test = part["parameters"], part["test"]
    return (f"{name}: {size['image'] / 1e6:.2f} M image, {size['text'] / 1e6:.2f} M text, {size['all']:,} in all; "
            f"recall at 1 {test['recall_at_1']:.1%}, at 5 {test['recall_at_5']:.1%}, at 10 {test['recall_at_10']:.1%}")

"""Pictures of classes that nobody labelled: made or found by the class's name, in a folder for each.

As in SuS-X: Training-Free Name-Only Transfer of Vision-Language Models (Udandarao, Gupta, Albanie; ICCV 2023, arXiv:2211.16198).
"""
from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from thrifty.core.errors import BadData, nearest
from thrifty.data.folders import IMAGES


def read_support(folder: str | os.PathLike[str], labels: Sequence[str]) -> dict[str, list[Any]]:
    """The pictures of ``folder`` as a table {"image": paths, "label": class numbers}, in the order of the classes.

    A class's folder has its name; "_" counts as a space and capitals as small letters.

    Raises: BadData for no folder, a class without a folder or without a picture, a folder of no class, two of one class.
    """
    place = Path(folder)
    if not place.is_dir():
        raise BadData(f"the support set {str(place)!r} is no folder: it must hold a folder of pictures for each class.")
    meant = {read_name(label): k for k, label in enumerate(labels)}
    found: dict[int, Path] = {}
    for inner in sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")):
        k = meant.get(read_name(inner.name))
        if k is None:
            raise BadData(f"{inner} is the folder of no class." + nearest(inner.name, labels))
        if k in found:
            raise BadData(f"{found[k]} and {inner} are both of the class {labels[k]!r}: put their pictures into one.")
        found[k] = inner
    table: dict[str, list[Any]] = {"image": [], "label": []}
    for k, label in enumerate(labels):
        if k not in found:
            raise BadData(f"the support set {place} has no folder for the class {label!r}."
                          + nearest(label, [path.name for path in found.values()]))
        pictures = sorted(path for path in found[k].iterdir() if path.suffix.lower() in IMAGES)
        if not pictures:
            raise BadData(f"{found[k]} holds no picture, so the support set lacks the class {label!r}.")
        table["image"] += pictures
        table["label"] += [k] * len(pictures)
    return table


def read_name(name: str) -> str:
    """A class name as folders and labels have in common."""
    return " ".join(name.replace("_", " ").split()).casefold()


def generate(make: Callable[[str], Iterable[Any]], labels: Sequence[str], folder: str | os.PathLike[str]) -> Path:
    """Fill a new ``folder`` with pictures: ``make`` is asked for each class by its name, and gives PIL pictures.

    The folder appears whole or not at all. A generator may call a diffusion model, search a collection, or draw.

    Raises: BadData for names that read alike or that no folder can have, a class for which nothing was made, what is no picture, or
        a folder that is there already.
    """
    place, seen = Path(folder), dict[str, str]()
    if place.exists():
        raise BadData(f"{place} is there already: a support set is put into a new folder.")
    for label in labels:
        if not read_name(label) or label.startswith(".") or set(label) & set('/\\\0'):
            raise BadData(f"the class {label!r} cannot be the name of a folder.")
        if (name := read_name(label)) in seen:
            raise BadData(f"the classes {seen[name]!r} and {label!r} read alike, so their pictures would lie in one folder.")
        seen[name] = label
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as spare:
        whole = Path(spare) / "whole"
        for label in labels:
            write_class(whole / label, label, make(label))
        os.replace(whole, place)
    return place


def write_class(folder: Path, label: str, pictures: Iterable[Any]) -> None:
    """The pictures of one class as PNG.

    Raises: BadData for none, or what is no picture.
    """
    from PIL.Image import Image

    folder.mkdir(parents=True)
    count = 0
    for picture in pictures:
        if not isinstance(picture, Image):
            raise BadData(f"the generator gave {type(picture).__name__} for the class {label!r}, where a PIL picture was wanted.")
        picture.convert("RGB").save(folder / f"{count:05}.png")
        count += 1
    if not count:
        raise BadData(f"the generator gave no picture for the class {label!r}.")

"""Names that people give to splits, and the three that are used here."""
from __future__ import annotations

import re
from collections.abc import Iterable

from thrifty.core.errors import BadData

SPLITS = ("train", "validation", "test")
ALIASES = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip


def canonical(name: str) -> str | None:
    """"train", "validation" or "test" for any of their names, or None."""
    return ALIASES.get(str(name).lower())


def shard(stem: str) -> tuple[str, int, int]:
    """(name, which, of how many) of a file's stem: "train-00000-of-00002" is ("train", 0, 2), "train" is ("train", 0, 1)."""
    match = re.fullmatch(r"(.+)-(\d{2,})-of-(\d{2,})", stem)
    return (match[1], int(match[2]), int(match[3])) if match else (stem, 0, 1)


def name_splits(names: Iterable[str], place: str) -> tuple[dict[str, str], list[str]]:
    """Given name -> canonical name, and the names that are no split.

    Raises: BadData when two names mean the same split, or when "validation_matched" and its like stand where the
        plain split is absent: taking one of them, or none, would be a guess.
    """
    names = list(names)
    meant = {name: split for name in names if (split := canonical(name))}
    for split in SPLITS:
        twice = [name for name in meant if meant[name] == split]
        if len(twice) > 1:
            raise BadData(f"{place}: {' and '.join(map(repr, twice))} both mean the {split} split; keep one.")
        near = [name for name in names if name not in meant and canonical(re.split(r"[^a-z]", name.lower())[0]) == split]
        if near and not twice:
            raise BadData(
                f"{place} has no plain {split} split but {near}. Say which is meant with a dict: "
                f'read({{"train": …, "{split}": …}}), or rename or remove the others.'
            )
    return meant, [name for name in names if name not in meant]

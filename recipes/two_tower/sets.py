"""Pictures with captions or classes, as they lie in the folder of assets."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.two_tower.recipe import PAIRS


@dataclass(frozen=True)
class Pictures:
    """One split: encoded ``images``; their ``captions``, or their ``labels`` among ``names``."""

    images: list[bytes]
    captions: list[list[str]]
    labels: list[int]
    names: list[str]


def read(assets: Path, name: str, split: str, limit: int | None = None) -> Pictures:
    """A split of a set; of more rows than ``limit`` every so manieth, so that classes keep their shares.

    Raises: FileNotFoundError where the set is not there.
    """
    import pyarrow.parquet as pq

    file = assets / "data" / ("multimodal" if name == PAIRS else "image") / name / f"{split}.parquet"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: --assets names the folder that holds data/image and data/multimodal")
    table: dict[str, list[Any]] = pq.read_table(file).to_pydict()
    rows = range(len(table["image"]))
    chosen = [row for row in rows if limit is None or row * limit // len(rows) != (row - 1) * limit // len(rows)]
    images = [table["image"][row] for row in chosen]
    if name == PAIRS:
        return Pictures(images, [table["captions"][row] for row in chosen], [], [])
    names = dict(zip(table["label"], table["label_name"], strict=True))
    spoken = [str(names.get(i, i)).replace("_", " ").strip() for i in range(max(names) + 1)]
    return Pictures(images, [], [table["label"][row] for row in chosen], spoken)

"""A world of five viewpoints, written by hand in the formats that are published:

         n
         |
    w -- c -- e

n is 6 m north of c, e 4 m east of it and 3 m higher, w 5 m west; far is joined to nothing, and closed is no viewpoint.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

PLACES = {"c": (1.0, 2.0, 1.5), "n": (1.0, 8.0, 1.5), "e": (5.0, 2.0, 4.5), "w": (-4.0, 2.0, 1.5), "far": (30.0, 0.0, 0.0),
          "closed": (1.0, 2.5, 1.5)}
EDGES = [("c", "n"), ("c", "e"), ("c", "w"), ("c", "closed")]
WIDTH = 5


def connectivity() -> list[dict[str, Any]]:
    """As the simulator's files have it: poses are 4 x 4 matrices, row by row."""
    rows = []
    for name, (x, y, z) in PLACES.items():
        joined = [(name, other) in EDGES or (other, name) in EDGES for other in PLACES]
        rows.append({"image_id": name, "pose": [0.5, 0, 0, x, 0, 0.5, 0, y, 0, 0, 1, z, 0, 0, 0, 1], "included": name != "closed",
                     "visible": [True] * len(PLACES), "unobstructed": joined, "height": 1.5})
    return rows


def features() -> dict[str, torch.Tensor]:
    """Every number says whose it is: the viewpoint, the view, the place in the vector."""
    return {f"home_{name}": torch.arange(36 * WIDTH).view(36, WIDTH) / 100 + 10.0 * number
            for number, name in enumerate(PLACES) if name != "closed"}


STARTS = {"train": "", "val_seen": "Now ", "val_unseen": "Please "}


def episodes(split: str = "train") -> list[dict[str, Any]]:
    """Two paths, one with two instructions; in each split they begin otherwise."""
    rows = [{"distance": 11.0, "scan": "home", "path_id": 7, "path": ["w", "c", "n"], "heading": 1.6,
             "instructions": ["Walk to the hall, then turn left.", "Go north at the crossing."]},
            {"distance": 5.0, "scan": "home", "path_id": 8, "path": ["n", "c", "e"], "heading": 3.1,
             "instructions": ["Climb the stairs."]}]
    return [{**row, "instructions": [STARTS[split] + text for text in row["instructions"]]} for row in rows]


def write(folder: Path, **changes: Any) -> Path:
    """The whole folder; ``changes`` are the contents of files by their stems."""
    (folder / "connectivity").mkdir(parents=True, exist_ok=True)
    files = {**{f"R2R_{split}": episodes(split) for split in STARTS}, **changes}
    for name, rows in files.items():
        if name.startswith("R2R"):
            (folder / f"{name}.json").write_text(json.dumps(rows))
    (folder / "connectivity" / "home_connectivity.json").write_text(json.dumps(files.get("connectivity", connectivity())))
    save_file(files.get("features", features()), folder / "features.safetensors")
    return folder

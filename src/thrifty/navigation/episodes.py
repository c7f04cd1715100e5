"""Who is to go where, and what is said about it: rows of R2R's JSON files, one episode for each instruction.

Anderson et al., "Vision-and-Language Navigation", CVPR 2018, arXiv:1711.07280.
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.core.errors import BadData


@dataclass(frozen=True)
class Episode:
    """A walk along ``path`` (viewpoints) in ``scan``, begun while looking along ``heading``, and one instruction for it.

    ``name`` is "PATH_NUMBER", as R2R counts the instructions of a path.
    """

    name: str
    scan: str
    path: tuple[str, ...]
    heading: float
    instruction: str

    @property
    def goal(self) -> str:
        """Where it ends."""
        return self.path[-1]


def read_episodes(file: Path) -> list[Episode]:
    """The episodes of a file: a list of {"path_id", "scan", "path", "heading", "instructions"}.

    Raises:
        BadData: the file is no such list, or a row of it lacks something; the message says which.
    """
    try:
        rows = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise BadData(f"{file} cannot be read: {error}") from None
    if not isinstance(rows, list) or not rows:
        raise BadData(f"{file} is no list of paths with instructions")
    found = [episode for number, row in enumerate(rows) for episode in _read_row(row, f"{file}, row {number}")]
    names = [episode.name for episode in found]
    if twice := sorted({name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()):
        raise BadData(f"{file} has two episodes called {twice[0]!r}: path_id must differ from row to row")
    return found


def _read_row(row: Any, place: str) -> list[Episode]:
    wanted: dict[str, Any] = {"path_id": (int, str), "scan": str, "path": list, "heading": (int, float), "instructions": list}
    for key, kind in wanted.items():
        if not isinstance(row, dict) or not isinstance(row.get(key), kind):
            shown = repr(row.get(key)) if isinstance(row, dict) and key in row else "nothing"
            raise BadData(f"{place}: {key} must be {' or '.join(k.__name__ for k in _listed(kind))}, found {shown}")
    if not row["path"] or not all(isinstance(viewpoint, str) for viewpoint in row["path"]):
        raise BadData(f"{place}: path must be a list of viewpoints, found {row['path']!r}")
    for text in row["instructions"]:
        if not isinstance(text, str) or not text.strip():
            raise BadData(f"{place}: an instruction is {text!r}, which says nothing")
    return [Episode(f"{row['path_id']}_{i}", row["scan"], tuple(row["path"]), float(row["heading"]), text)
            for i, text in enumerate(row["instructions"])]


def _listed(kind: Any) -> tuple[type, ...]:
    return kind if isinstance(kind, tuple) else (kind,)


def write_episodes(file: Path, episodes: list[Episode]) -> None:
    """The file that ``read_episodes`` reads; instructions of one path lie together."""
    from thrifty.train.files import write_json

    rows: dict[str, dict[str, Any]] = {}
    for one in episodes:
        path_id = one.name.rpartition("_")[0]
        row = rows.setdefault(path_id, {"path_id": path_id, "scan": one.scan, "path": list(one.path), "heading": one.heading,
                                        "instructions": []})
        row["instructions"].append(one.instruction)
    write_json(file, list(rows.values()))

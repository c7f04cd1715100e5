"""Writing: a ranking as two files for people and programs, in a folder that appears whole."""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thrifty.artifact.files import whole_folder
from thrifty.candidates.page import compose
from thrifty.core.errors import ThriftyError

DATA, PAGE = "ranking.json", "ranking.html"


def write(ranking: Mapping[str, Any], folder: Path, overwrite: bool = False) -> Path:
    """Put both into ``folder``.

    Raises:
        ThriftyError: the folder holds something else, or a ranking that is not to be overwritten.
    """
    refuse_there(folder, overwrite)
    with whole_folder(folder, frozenset({DATA, PAGE})) as fresh:
        (fresh / DATA).write_text(json.dumps(ranking, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
        (fresh / PAGE).write_text(compose(ranking), encoding="utf-8")
    return folder


def refuse_there(folder: Path, overwrite: bool) -> None:
    """Raises: ThriftyError for a folder that holds a ranking, unless it is to be overwritten, or anything else."""
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if strange := [name for name in there if name not in (DATA, PAGE)]:
        raise ThriftyError(f"{folder} holds things that no ranking wrote ({', '.join(strange[:3])}): choose another folder")
    if there and not overwrite:
        raise ThriftyError(f"{folder} holds a ranking: choose another folder, or --overwrite (overwrite=True)")

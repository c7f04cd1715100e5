"""The folder of a run: what lies in it, and whether it may be written to."""
from __future__ import annotations

import re
import shutil
from pathlib import Path

from thrifty.core.errors import ThriftyError

FILES = frozenset({"config.json", "metrics.json", "environment.json", "data.json", "predictions.jsonl", "report.html",
                   "demonstrations.jsonl"})
OURS = re.compile(r"adapter|seed-\d+|\.\w[\w.\-]*\.(old|\d+|[a-z0-9_]{8})")


def claim(folder: Path, resume: bool, overwrite: bool) -> bool:
    """Make the folder ready for a run; whether it holds a finished one that ``resume`` found.

    Raises:
        ThriftyError: it is a file, holds things that no run wrote, or a run that was neither to be resumed nor overwritten.
    """
    if resume and overwrite:
        raise ThriftyError("resume and overwrite contradict each other: choose one")
    if folder.exists() and not folder.is_dir():
        raise ThriftyError(f"{folder} is a file: choose a folder for the run")
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    strange = [name for name in there if name not in FILES and not OURS.fullmatch(name)]
    if strange:
        raise ThriftyError(f"{folder} holds things that no run wrote ({', '.join(strange[:3])}): choose another folder")
    finished = "metrics.json" in there
    begun = finished or any(name not in ("config.json",) for name in there)  # a mistake leaves no more than that behind
    if begun and not resume and not overwrite:
        kind = "a finished run" if finished else "a run that did not finish"
        go_on = "" if finished else "--resume (resume=True) to go on with it, "
        raise ThriftyError(f"{folder} holds {kind}: choose another folder, {go_on}or --overwrite (overwrite=True)")
    if overwrite:
        for name in there:
            clear(folder / name)
    folder.mkdir(parents=True, exist_ok=True)
    return finished and resume


def clear(path: Path) -> None:
    """Delete a file or folder of a run."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def size(folder: Path) -> int:
    """Bytes of all files in ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def free_name(runs: Path, name: str) -> Path:
    """A folder under ``runs`` that does not exist yet, called ``name``, perhaps with a number."""
    clean = re.sub(r"[^\w.\-]+", "-", name).strip("-.") or "run"
    found, count = runs / clean, 2
    while found.exists():
        found, count = runs / f"{clean}-{count}", count + 1
    return found

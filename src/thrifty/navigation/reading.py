"""A folder of walks as a dataset: R2R's JSON files, connectivity graphs, and features of all views."""
from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from thrifty.core.errors import BadData
from thrifty.data import Dataset
from thrifty.navigation.episodes import Episode, read_episodes
from thrifty.navigation.features import find_features, read_features
from thrifty.navigation.graph import SUFFIX, read_graphs
from thrifty.navigation.world import World

SPLITS = {"train": "train", "validation": "val_seen", "test": "val_unseen"}
COLUMNS = {"text": "instructions", "label": "path"}
CONNECTIVITY = "connectivity"


def read(source: str | os.PathLike[str], *, train: str = SPLITS["train"], validation: str = SPLITS["validation"],
         test: str = SPLITS["test"], context: bool = True, allow_leak: bool = False) -> Dataset:
    """What `thrifty.tune` and the task "navigation" take: ``source`` holds

        *_train.json, *_val_seen.json, *_val_unseen.json     R2R's episodes; one file for each split
        connectivity/SCAN_connectivity.json                  the simulator's graphs
        features.safetensors or features.npz                 [36, width] under "SCAN_VIEWPOINT"

    By default the best state is chosen on ``val_seen``, and ``val_unseen`` is the test split, which is read once: many published
    numbers are of the split on which they were selected. ``context``: see `World`. ``allow_leak``: go on although two splits have
    an instruction for one path in common.

    Raises:
        BadData: something is missing or damaged, two splits have something in common, or an episode cannot be walked; the message
            names it.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise BadData(f"walks are read from a folder, and {type(source).__name__} is none")
    folder = Path(source).expanduser()
    world = read_world(folder, context)
    files = {split: find_split(folder, name) for split, name in (("train", train), ("validation", validation), ("test", test))}
    parts = {split: read_walks(file, world) for split, file in files.items()}
    leaks = find_leaks(parts)
    if leaks and not allow_leak:
        raise BadData(f"{len(leaks)} episodes of {folder} lie in two splits, such as {leaks[0]}: the score would be too good. Take "
                      "them out of one, or allow it (allow_leak)")
    tables = {split: tabulate(world, episodes) for split, episodes in parts.items()}
    record = describe(folder, files, parts) | {"leaks": {"pairs": len(leaks), "examples": leaks[:5], "allowed": allow_leak}}
    return Dataset(tables, dict(COLUMNS), "navigation", None, record)


def find_leaks(parts: dict[str, list[Episode]]) -> list[str]:
    """Episodes whose path and instruction are in another split too, as "'3_0' of train and '7_1' of test"."""
    first: dict[tuple[str, tuple[str, ...], str], tuple[str, str]] = {}
    found = []
    for split, episodes in parts.items():
        for one in episodes:
            name, home = first.setdefault((one.scan, one.path, one.instruction), (one.name, split))
            if home != split:
                found.append(f"{name!r} of {home} and {one.name!r} of {split}")
    return found


def read_split(source: str | os.PathLike[str], name: str | None = None, context: bool = True) -> dict[str, list[Any]]:
    """One file of walks, or the start of walks, as columns; ``name`` is what stands behind the last "_" of its name.

    Raises:
        BadData: as ``read``; or there are several files and no name.
    """
    folder = Path(source).expanduser()
    world = read_world(folder, context)
    files = sorted(folder.glob("*_*.json"))
    if name is None and len(files) != 1:
        raise BadData(f"{folder} holds {len(files)} files of walks ({', '.join(file.name for file in files)}): name one (--split)")
    file = find_split(folder, name) if name is not None else files[0]
    return tabulate(world, read_walks(file, world))


def read_walks(file: Path, world: World) -> list[Episode]:
    """The episodes of a file, all of which can be walked.

    Raises:
        BadData: the file is damaged, or one cannot.
    """
    episodes = read_episodes(file)
    for episode in episodes:
        try:
            world.check(episode)
        except BadData as error:
            raise BadData(f"{file}: {error}") from None
    return episodes


def read_world(folder: Path, context: bool = True) -> World:
    """The world in a folder.

    Raises:
        BadData: something is missing or damaged.
    """
    return World(read_graphs(folder / CONNECTIVITY), read_features(find_features(folder)), context)


def tabulate(world: World, episodes: list[Episode]) -> dict[str, list[Any]]:
    """Episodes as columns."""
    return {"text": [episode.instruction for episode in episodes], "label": [" ".join(episode.path) for episode in episodes],
            "episode": episodes, "world": [world] * len(episodes)}


def find_split(folder: Path, name: str) -> Path:
    """The file of a split.

    Raises:
        BadData: there is none, or more than one.
    """
    found = sorted(folder.glob(f"*_{name}.json")) if folder.is_dir() else []
    if len(found) != 1:
        there = ", ".join(sorted(file.name for file in folder.glob("*.json"))) if folder.is_dir() else "no folder"
        raise BadData(f"{folder} must hold one file *_{name}.json, and holds {len(found)} (there is: {there or 'none'})")
    return found[0]


def describe(folder: Path, files: dict[str, Path], parts: dict[str, list[Episode]]) -> dict[str, Any]:
    """The record of a dataset: files with their hashes, and what was decided."""
    world = [find_features(folder), *sorted((folder / CONNECTIVITY).glob("*" + SUFFIX))]
    sums = {file: digest(file) for file in (*files.values(), *world)}
    around = hashlib.sha256("".join(sums[file] for file in world).encode()).hexdigest()
    walked = {episode.scan for episode in parts["train"]}
    known = sum(episode.scan in walked for episode in parts["test"])
    return {
        "source": {"kind": "folder", "name": str(folder)}, "task": "navigation", "task_why": "As told.",
        "files": [{"name": file.name, "sha256": sums[file], "rows": len(parts[split])} for split, file in files.items()],
        "world": {"sha256": around, "scans": len(world) - 1}, "columns": COLUMNS, "ignored": [],
        "rows": {split: len(episodes) for split, episodes in parts.items()},
        "content": {split: hashlib.sha256((sums[file] + around).encode()).hexdigest() for split, file in files.items()},
        "labels": None, "decisions": [
            f"{files['validation'].name} chooses what is kept, and {files['test'].name} is the test split.",
            f"{known} of {len(parts['test'])} test episodes are in scans that training walks in."],
    }


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as held:
        return hashlib.file_digest(held, "sha256").hexdigest()

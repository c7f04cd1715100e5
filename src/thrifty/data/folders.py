"""A folder of tables named by split, or a folder of images by class; on disk or in an archive."""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thrifty.core.errors import BadData
from thrifty.data.rows import Given, Place, Rows, join
from thrifty.data.splitnames import SPLITS, canonical, name_splits, shard
from thrifty.data.tables import SUFFIXES, read_bytes, read_file
from thrifty.data.zipped import Entry, Member

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def read_folder(folder: Entry) -> Given:
    """The splits of a folder, whichever of the known layouts it has.

    Tables: ``train.csv``, ``validation.parquet``, ``test-00000-of-00002.parquet`` …; or one table alone, or one that names the
    images around it. Images: ``class/x.png`` or ``split/class/x.png``. Any of these may lie in one folder inside.

    Raises: BadData when no layout fits, or more than one could.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    tables = [path for path in files if path.suffix.lower() in SUFFIXES]
    named = [path for path in tables if canonical(shard(path.stem)[0])]
    if named:
        return read_split_files(folder, tables, [path.name for path in files if path not in tables])
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    loose = sum(path.suffix.lower() in IMAGES for path in files)
    inner = folders[0] if len(folders) == 1 and not canonical(folders[0].name) and not has_images(folders[0]) else None
    if inner is not None and (inner.name == "data" or not (tables or loose)):
        return read_folder(inner)
    pictured = any(has_images(path) or any(has_images(below) for below in subfolders(path)) for path in folders)
    if len(tables) == 1 and (not pictured or names_images(tables[0])):
        parts, record = read_file(tables[0], tables[0].name)
        return Given("folder", str(folder), parts, [record])
    if pictured:
        given = read_images(folder, folders)
        if files:
            given.notes.append(f"files beside the folders were not read: {', '.join(path.name for path in files[:10])}.")
        return given
    raise BadData(
        f"{folder}: no data found. Expected tables named by split (train.csv, test.parquet, …), or images by class "
        f"(class/x.png or split/class/x.png). Here: {len(tables)} tables {[path.name for path in tables[:5]]}, "
        f"{len(folders)} folders {[path.name for path in folders[:5]]}, {loose} images without a class folder."
    )


def names_images(table: Entry) -> bool:
    """Whether a column of a table holds the paths of images, by its first value. What is no table names none."""
    try:
        columns = [cells for rows in read_file(table, table.name)[0].values() for cells in rows.table.values()]
    except BadData:
        return False
    for cells in columns:
        value = next((cell for cell in cells if cell), None)
        if isinstance(value, str) and value.lower().endswith(IMAGES):
            inside = table.parent.find(value) if isinstance(table, Member) else table.parent / value
            if inside is not None and inside.is_file():
                return True
    return False


def read_split_files(folder: Entry, tables: Sequence[Entry], others: list[str]) -> Given:
    """Tables whose names are splits; shards of one split are joined in order.

    Raises: BadData for a missing shard, two files for one split, or a file whose split would be a guess.
    """
    groups: dict[str, list[Entry]] = {}
    for path in tables:
        groups.setdefault(shard(path.stem)[0], []).append(path)
    meant, unknown = name_splits(groups, str(folder))
    given = Given("folder", str(folder), {})
    for name, split in sorted(meant.items(), key=lambda item: SPLITS.index(item[1])):
        check_shards(groups[name])
        parts = []
        for path in groups[name]:
            found, record = read_file(path, path.name)
            if set(found) != {""}:
                raise BadData(f"{path.name} holds splits of its own, {sorted(found)}, in a folder of splits.")
            parts.append(found[""])
            given.files.append(record)
        given.splits[split] = join(parts)
    left = others + [path.name for name in unknown for path in groups[name]]
    if left:
        given.notes.append(f"files that are no split were not read: {', '.join(sorted(left))}.")
    return given


def check_shards(paths: Sequence[Entry]) -> None:
    """Raises: BadData unless ``paths`` is one file, or all shards of one set, once each."""
    numbers = [shard(path.stem)[1:] for path in paths]
    total = numbers[0][1]
    wanted = [(which, total) for which in range(total)]
    if sorted(numbers) != wanted:
        lacking = [which for which, _ in wanted if (which, total) not in numbers]
        why = f"shards {lacking} of {total} are missing" if lacking else "there is more than one file for this split"
        raise BadData(f"{', '.join(path.name for path in paths)}: {why}.")


def read_images(folder: Entry, folders: Sequence[Entry]) -> Given:
    """Images by class. The class is the name of the folder that an image lies in.

    Raises: BadData for images at more than one depth, an empty class folder, or the same split twice.
    """
    flat = [path.name for path in folders if has_images(path)]
    deep = [path.name for path in folders if any(has_images(below) for below in subfolders(path))]
    if flat and deep:
        raise BadData(
            f"{folder}: images lie at two depths, directly in {flat[:5]} and one folder deeper in {deep[:5]}. "
            "Use class/x.png or split/class/x.png throughout."
        )
    given = Given("images", str(folder), {})
    if flat:
        given.splits[""] = read_classes(folder, "", given)
        return given
    meant, unknown = name_splits([path.name for path in folders], str(folder))
    if not meant:
        raise BadData(f"{folder}: images lie two folders deep, but {deep[:5]} are not the names of splits (train, …).")
    for name, split in meant.items():
        given.splits[split] = read_classes(folder / name, name + "/", given)
    if unknown:
        given.notes.append(f"folders that are no split were not read: {', '.join(unknown)}.")
    return given


def read_classes(folder: Entry, prefix: str, given: Given) -> Rows:
    """The images of one split, sorted by class and name; ``prefix`` goes before the class in every file's name."""
    rows = Rows({"image": [], "label": []}, [], folder=folder)
    whole = hashlib.sha256()
    for place in subfolders(folder):
        paths = sorted(path for path in place.iterdir() if not path.name.startswith("."))
        images = [path for path in paths if path.suffix.lower() in IMAGES]
        if not images:
            raise BadData(f"the class folder {prefix}{place.name} holds no image ({', '.join(IMAGES)}).")
        if any(path.is_dir() for path in paths):
            raise BadData(f"the class folder {prefix}{place.name} holds a folder; images must lie directly in it.")
        others = [path.name for path in paths if path not in images]
        if others:
            given.notes.append(f"files in {prefix}{place.name} that are no image were not read: {', '.join(others)}.")
        for path in images:
            name = f"{prefix}{place.name}/{path.name}"
            try:
                data = read_bytes(path)
            except BadData as error:
                rows.unreadable.append((Place(name, None), str(error).rstrip(".")))
                continue
            rows.table["image"].append(str(path) if isinstance(path, Path) else data)
            rows.table["label"].append(place.name)
            rows.places.append(Place(name, None))
            whole.update(f"{name}\0{hashlib.sha256(data).hexdigest()}\n".encode())
    record: dict[str, Any] = {"name": prefix or "./", "sha256": whole.hexdigest(), "rows": len(rows)}
    given.files.append(record)
    return rows


def subfolders(folder: Entry) -> Sequence[Entry]:
    """The folders directly in ``folder`` that are not hidden, sorted."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def has_images(folder: Entry) -> bool:
    """Whether an image lies directly in ``folder``."""
    return any(path.suffix.lower() in IMAGES for path in folder.iterdir() if path.is_file())

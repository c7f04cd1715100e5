"""Files: a folder appears whole or not at all, and nothing read from one is believed before it is checked."""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..core.errors import BrokenArtifact, ThriftyError

TENSORS, ABOUT = "adapter.safetensors", "adapter.json"
MOST_JSON = 64 << 20
MOST_HEADER = 32 << 20


def adapter_folder(path: str | os.PathLike[str]) -> Path:
    """Where the adapter lies: ``path`` itself, or the folder ``adapter`` in it if ``path`` is a run."""
    folder = Path(path)
    return folder / "adapter" if (folder / "adapter").is_dir() and not (folder / ABOUT).exists() else folder


@contextlib.contextmanager
def whole_folder(path: Path, ours: frozenset[str]) -> Iterator[Path]:
    """A new folder to fill; when the block ends without an error it takes the place of ``path`` in one rename.

    Raises:
        ThriftyError: ``path`` is a file, a link, or a folder that holds anything but the files in ``ours``.
    """
    if path.is_symlink() or path.is_file():
        raise ThriftyError(f"{path} is a {'link' if path.is_symlink() else 'file'}, not a folder to save in")
    if path.is_dir():
        strange = sorted(set(os.listdir(path)) - ours)
        if strange:
            raise ThriftyError(f"{path} holds other files ({', '.join(strange[:3])}): saving would replace the folder, so "
                               "choose another")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield fresh
        for file in fresh.iterdir():
            os.chmod(file, 0o644)
            _sync(file)
        os.chmod(fresh, 0o755)
        old = path.with_name(f".{path.name}.old")
        if path.is_dir():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(path, old)
        os.rename(fresh, path)
        shutil.rmtree(old, ignore_errors=True)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def canonical(data: Any) -> bytes:
    """JSON in the one way in which it is hashed."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def sha256(data: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file of bounded size.

    Raises:
        BrokenArtifact: missing, oversized, truncated, not an object, or with a key twice.
    """
    if not path.is_file():
        kept = path.parent.with_name(f".{path.parent.name}.old")
        interrupted = kept.is_dir() and not path.parent.is_dir()
        hint = f" A save was interrupted; the previous adapter is in {kept}." if interrupted else ""
        raise BrokenArtifact(f"no {path.name} in {path.parent}: not an adapter folder.{hint}")
    size = path.stat().st_size
    if size > MOST_JSON:
        raise BrokenArtifact(f"{path} is {size >> 20} MiB; an adapter's description is at most {MOST_JSON >> 20} MiB")

    try:
        data = json.loads(path.read_bytes(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise BrokenArtifact(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise BrokenArtifact(f"{path} holds {type(data).__name__}, not an object")
    return data


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Names, shapes and dtypes of a safetensors file, and ``__metadata__`` where there is any, read without its data.

    Raises:
        BrokenArtifact: missing, truncated, longer than it says, or with a header that is too large.
    """
    if not path.is_file():
        raise BrokenArtifact(f"no {path.name} in {path.parent}")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MOST_HEADER, size - 8):
            raise BrokenArtifact(f"{path} is truncated or is no safetensors file ({size} bytes)")
        try:
            header = json.loads(file.read(length), object_pairs_hook=_once)
            end = max((row["data_offsets"][1] for name, row in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            raise BrokenArtifact(f"{path} has a broken header") from None
    if size != 8 + length + end:
        raise BrokenArtifact(f"{path} has {size} bytes, its header speaks of {8 + length + end}: it was truncated or added to")
    return header


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Files that are there whole or not at all."""
from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from thrifty.core.errors import BrokenArtifact


def write_bytes(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` in one rename, after it has reached the disk."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """``data`` as JSON for people to read."""
    write_bytes(path, (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """One JSON value per line."""
    write_bytes(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode())


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        BrokenArtifact: it cannot be read.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BrokenArtifact(f"{path} cannot be read: {error}") from None

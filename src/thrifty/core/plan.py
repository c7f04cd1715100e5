"""Plan: what an attachment put where, as plain data. With the tensors it is all that a file needs to rebuild it."""
from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .errors import BrokenArtifact, nearest
from .part import Part


@dataclass
class Row:
    """One edit: its key in the file, its place, the registered name of its class and the numbers it was built with."""

    key: str
    path: str
    role: str
    depth: int
    stack: str
    part: Part | None
    edit: str
    numbers: dict[str, Any]
    seen: dict[str, int] = field(default_factory=dict)
    on: bool = True

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def read(cls, row: Any) -> Row:
        """From JSON.

        Raises:
            BrokenArtifact: a field is unknown, missing or of the wrong type.
        """
        if not isinstance(row, dict):
            raise BrokenArtifact(f"a plan row is an object, not {type(row).__name__}")
        kinds = {"key": str, "path": str, "role": str, "depth": int, "stack": str, "part": (dict, type(None)), "edit": str,
                 "numbers": dict, "seen": dict, "on": bool}
        for name in row:
            if name not in kinds:
                raise BrokenArtifact(f"unknown key {name!r} in a plan row." + nearest(name, kinds))
        for name, kind in kinds.items():
            if name not in row:
                raise BrokenArtifact(f"plan row {row.get('key', '?')!r} lacks {name!r}")
            if not isinstance(row[name], kind):  # type: ignore[arg-type]
                raise BrokenArtifact(f"plan row {row.get('key', '?')!r}: {name} is of the wrong type, {type(row[name]).__name__}")
        try:
            part = Part(**row["part"]) if row["part"] else None
        except TypeError as error:
            raise BrokenArtifact(f"plan row {row['key']!r}: {error}") from None
        return cls(**{**row, "part": part})

"""What adapter.json must say: every key, at every depth, of the right type, and its hash."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core import Row
from ..core.errors import BrokenArtifact, nearest
from .files import canonical, sha256

FORMAT, VERSION = "thrifty-adapter", 1
Types = Any  # a type, or a tuple of types, as isinstance takes them
KEYS: dict[str, Types] = {
    "format": str, "version": int, "thrifty": str, "method": (dict, type(None)), "seed": (int, type(None)), "plan": list,
    "shared": (list, type(None)), "trained": dict, "base": dict, "tensors": dict, "about": dict, "hash": str,
}
METHOD: dict[str, Types] = {"name": str, "settings": dict}
TRAINED: dict[str, Types] = {"masked": bool, "buffer": bool, "wildcard": bool}
TENSOR: dict[str, Types] = {"shape": list, "dtype": str, "sha256": str}
PART: dict[str, Types] = {"name": str, "lo": int, "hi": int, "groups": int}
PRECISIONS = ("stored", "bfloat16", "float16")


def check(data: dict[str, Any], where: Path) -> list[Row]:
    """The rows of the plan in ``data``, which was read from ``where``.

    Raises:
        BrokenArtifact: another format or version, a key that is unknown, missing or of the wrong type, or a wrong hash.
    """
    if data.get("format") != FORMAT:
        raise BrokenArtifact(f"{where} is not an adapter of this library (format {data.get('format')!r})")
    if data.get("version") != VERSION or isinstance(data["version"], bool):
        raise BrokenArtifact(f"{where} has schema version {data.get('version')!r}; this thrifty reads version {VERSION}")
    _object(data, KEYS, str(where))
    if sha256(canonical({k: v for k, v in data.items() if k != "hash"})) != data["hash"]:
        raise BrokenArtifact(f"{where} was changed after it was saved: its contents do not match its hash")
    if data["method"] is not None:
        _object(data["method"], METHOD, f"{where}: method")
    for name, about in data["trained"].items():
        _object(about, TRAINED, f"{where}: trained {name!r}")
    for name, about in data["tensors"].items():
        _object(about, TENSOR, f"{where}: tensors {name!r}")
        if not all(_count(n) for n in about["shape"]):
            raise BrokenArtifact(f"{where}: tensors {name!r}: {about['shape']!r} is no shape")
    _fingerprint(data["base"], where)
    shared = data["shared"]
    if shared is not None and not (len(shared) == 2 and isinstance(shared[0], str) and isinstance(shared[1], dict)):
        raise BrokenArtifact(f"{where}: 'shared' is not a name and its numbers")
    return [_row(row, where) for row in data["plan"]]


def _row(data: Any, where: Path) -> Row:
    if isinstance(data, dict) and isinstance(part := data.get("part"), dict):
        _object(part, PART, f"{where}: part of {data.get('key')!r}")
        if not 0 <= part["lo"] < part["hi"] or part["groups"] < 1:
            raise BrokenArtifact(f"{where}: {data.get('key')!r} is about no columns: {part}")
    row = Row.read(data)
    if not all(_count(n) for n in row.seen.values()):
        raise BrokenArtifact(f"{where}: {row.key!r}: what was seen are not widths: {row.seen}")
    return row


def _fingerprint(base: dict[str, Any], where: Path) -> None:
    if "stored" not in base:
        raise BrokenArtifact(f"{where}: the record of the base model is no fingerprint")
    for precision, sums in base.items():
        if precision not in PRECISIONS or not isinstance(sums, dict) or not all(isinstance(s, str) for s in sums.values()):
            raise BrokenArtifact(f"{where}: base[{precision!r}] is no list of checksums")


def _object(data: Any, keys: Mapping[str, Types], where: str) -> None:
    if not isinstance(data, dict):
        raise BrokenArtifact(f"{where} is {type(data).__name__}, not an object")
    for key in data:
        if key not in keys:
            raise BrokenArtifact(f"{where}: unknown key {key!r}." + nearest(key, keys))
    for key, kind in keys.items():
        if key not in data:
            raise BrokenArtifact(f"{where}: {key!r} is missing")
        if not isinstance(data[key], kind) or isinstance(data[key], bool) and kind is not bool:
            raise BrokenArtifact(f"{where}: {key!r} is of the wrong type, {type(data[key]).__name__}")


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40

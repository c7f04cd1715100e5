"""The same content twice: across splits it is a leak, inside a split a number to know."""
from __future__ import annotations

import hashlib
import json
import unicodedata
from typing import Any

from thrifty.core.errors import BadData
from thrifty.data.rows import Place, Rows, spell
from thrifty.data.splitnames import SPLITS

KEPT = 100
"""How many leaking pairs the record spells out."""


def mark(rows: Rows, seen: tuple[str, ...]) -> None:
    """Fill ``rows.keys``: one digest per row of the roles that the model will see. Images have theirs already (the file's bytes).

    Texts that differ only in white space or in Unicode composition count as the same.
    """
    if not rows.keys:
        columns = [rows.table[role] for role in seen if role in rows.table]
        rows.keys = [digest([fold(value) for value in row]) for row in zip(*columns, strict=True)]


def fold(value: Any) -> Any:
    """A text, or a list of texts, in NFC with white space folded; a number as it is."""
    if isinstance(value, list):
        return [fold(item) for item in value]
    return " ".join(unicodedata.normalize("NFC", value).split()) if isinstance(value, str) else value


def digest(value: Any) -> str:
    """sha256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def count_repeats(rows: Rows) -> int:
    """Rows whose content stood earlier in the same split."""
    return len(rows) - len(set(rows.keys))


def refuse(parts: dict[str, Rows], allow: bool) -> dict[str, Any]:
    """Compare every two splits; the record of the pairs found (pairs, rows that leak per split, examples).

    Raises: BadData naming up to ten pairs with both places, unless ``allow``.
    """
    found: list[tuple[Place, Place]] = []
    pairs, leaking = 0, {}
    order = [split for split in SPLITS if split in parts]
    for i, later in enumerate(order):
        hit = set()
        for earlier in order[:i]:
            first: dict[str, list[int]] = {}
            for row, key in enumerate(parts[earlier].keys):
                first.setdefault(key, []).append(row)
            for row, key in enumerate(parts[later].keys):
                if key in first:
                    hit.add(row)
                    pairs += len(first[key])
                    found.append((parts[earlier].places[first[key][0]], parts[later].places[row]))
        if hit:
            leaking[later] = len(hit)
    if pairs and not allow:
        raise BadData(
            f"{pairs} {'pair' if pairs == 1 else 'pairs'} of rows with the same content lie in different splits:\n"
            + spell(f"{one} and {other}" for one, other in found)
            + "\nScores on such rows measure memory. Remove them, or go on with allow_leak=True (--allow-leak); "
            "the report then says so."
        )
    examples = [[str(one), str(other)] for one, other in found[:KEPT]]
    return {"pairs": pairs, "rows": leaking, "examples": examples, "allowed": bool(pairs)}

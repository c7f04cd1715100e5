"""Datasets that one head serves, such as one task in several languages: their classes are numbered alike."""
from __future__ import annotations

from collections.abc import Mapping

from thrifty.core.errors import Unfit
from thrifty.data.dataset import Dataset


def share_classes(parts: Mapping[str, Dataset]) -> None:
    """Number the classes of all ``parts`` alike, in place: those of the first one, and behind them what later ones add.

    What a part lacks is noted among its decisions. Parts that tell no classes apart stay as they are.

    Raises: Unfit for a part that has no class in common with the others, as it must mean something else by its own.
    """
    every = [part.labels for part in parts.values() if part.labels is not None]
    if len(every) < len(parts) or all(labels == every[0] for labels in every):
        return
    union = list(dict.fromkeys(label for labels in every for label in labels))
    for name, part in parts.items():
        labels = part.labels or []
        if not set(labels) & {label for other in parts.values() if other is not part for label in other.labels or []}:
            raise Unfit(f"one_head: task {name!r} has no class in common with the others: its classes are {labels[:10]}, theirs "
                        f"{[label for label in union if label not in labels][:10]}")
        if missing := [label for label in union if label not in labels]:
            part.record.setdefault("decisions", []).append(f"one head for all: none of these rows is of {', '.join(missing)}.")
        part.number_classes(union)

"""A dataset by halves of its classes: those that are learned, and those that a model must know without having learned them.

The protocol is that of K. Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, arXiv:2203.05557.
"""
from __future__ import annotations

from typing import Any

from thrifty.core.errors import BadData
from thrifty.data.dataset import Dataset
from thrifty.data.rows import Table

SPLITS = ("train", "validation", "test")


def halves(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """The first half of the classes in their order, the larger one if they are odd in number, and the others; each counted from 0.

    The test split is taken out of ``dataset``, and lies behind the doors of the halves.

    Raises: BadData for fewer than four classes, or a dataset that was opened already.
    """
    labels = dataset.labels or []
    if len(labels) < 4:
        raise BadData(f"halves of the classes need at least four of them, two for each; there are {len(labels)}.")
    middle = (len(labels) + 1) // 2
    tables = {"train": dataset.splits["train"], "validation": dataset.splits["validation"], "test": dataset.test()}
    return (half(dataset, tables, 0, middle, "first"), half(dataset, tables, middle, len(labels), "second"))


def half(dataset: Dataset, tables: dict[str, Table], start: int, end: int, which: str) -> Dataset:
    """The rows of classes ``start`` to ``end``, with labels counted from 0."""
    kept = {split: keep(table, start, end) for split, table in tables.items()}
    rows = {split: len(kept[split]["label"]) for split in SPLITS}
    if lacking := [split for split, count in rows.items() if not count]:
        raise BadData(f"the {which} half of the classes has no row in {lacking[0]}.")
    record: dict[str, Any] = {
        **dataset.record, "labels": (dataset.labels or [])[start:end], "rows": rows,
        "content": {split: f"{digest}, {which} half" for split, digest in dataset.record.get("content", {}).items()},
        "decisions": [*dataset.record.get("decisions", []), f"these are the rows of the {which} half of the classes."]}
    return Dataset(dict(kept), dataset.columns, dataset.task, (dataset.labels or [])[start:end], record)


def keep(table: Table, start: int, end: int) -> Table:
    """The rows of classes ``start`` to ``end``."""
    places = [i for i, label in enumerate(table["label"]) if start <= label < end]
    return {role: [values[i] - start if role == "label" else values[i] for i in places] for role, values in table.items()}

"""Test rows as a person reads them: what went in, what was right, what was said."""
from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.formats.format import INVALID
from thrifty.models.kinds import GENERATION
from thrifty.tasks import Task

THUMBNAIL = 96  # pixels on the long side


def write_out(task: Task, predictions: Sequence[Mapping[str, Any]], table: Mapping[str, Sequence[Any]],
              seed: int) -> list[dict[str, Any]]:
    """One line of ``predictions.jsonl`` per test row, as ``thrifty.report.files`` describes it."""
    found = []
    for index, said in enumerate(predictions):
        row = {role: column[index] for role, column in table.items()}
        line = {"index": index, "seed": seed, "input": said.get("input", read_input(row)), "target": name_target(task, row),
                "prediction": name_prediction(task, said, row), "scores": said.get("scores")}
        if "written" in said:
            line["written"] = said["written"]
        if "choices" in row:
            line["choices"] = list(row["choices"])
        if "image" in row:
            line["image"] = thumbnail(row["image"])
        found.append(line)
    return found


def read_input(row: Mapping[str, Any]) -> Any:
    """What the model saw of a row, without images."""
    if "tokens" in row:
        return list(row["tokens"])
    texts = [row[role] for role in ("text", "text_pair", "source") if role in row]
    return texts[0] if len(texts) == 1 else texts or None


def name_target(task: Task, row: Mapping[str, Any]) -> Any:
    """The right answer in words."""
    if task.name in GENERATION:
        return list(row["references"]) if row.get("references") else row["target"]
    if task.name == "masked-language":
        return row["text"]
    if "captions" in row:
        return list(row["captions"])
    if "tags" in row:
        return [name_of(task, tag) for tag in row["tags"]]
    return name_of(task, row["label"]) if task.name.endswith("classification") else row["label"]


def name_prediction(task: Task, said: Mapping[str, Any], row: Mapping[str, Any]) -> Any:
    """A prediction in words, None where what a model wrote names nothing; words that were cut off get the tag that scoring gave
    them."""
    answer = said["prediction"]
    if answer == INVALID and task.name != "regression":
        return None
    if task.name == "token-classification":
        tags = task.complete(answer, len(row["tokens"]))  # type: ignore[attr-defined]
        return [name_of(task, tag) for tag in tags]
    return name_of(task, answer) if task.name.endswith("classification") else answer


def name_of(task: Task, number: int) -> str:
    """The label with that number."""
    assert task.labels is not None
    return task.labels[number]


def thumbnail(value: Any) -> str:
    """A small picture that a page can hold."""
    from thrifty.data import images

    picture = images.open(value)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    held = io.BytesIO()
    picture.save(held, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()

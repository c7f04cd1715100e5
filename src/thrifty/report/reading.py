"""Read the files of a run folder, checked."""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.core.errors import BrokenArtifact
from thrifty.report.files import Metrics, Prediction
from thrifty.report.schema import check, check_prediction


@dataclass(frozen=True)
class Results:
    """All that a report is made of. The parts that a folder lacks are None; an absent predictions.jsonl is an empty list."""

    metrics: Metrics
    predictions: list[Prediction]
    config: dict[str, Any] | None
    environment: dict[str, Any] | None
    data: dict[str, Any] | None
    key: str = ""   # stands before the names of charts, which differ throughout a page

    @property
    def pooled(self) -> str:
        """How a sentence about counted predictions goes on: nothing with one seed."""
        seeds = len(self.metrics["seeds"])
        return f", counted over all {seeds} seeds" if seeds > 1 else ""


def read(folder: Path) -> Results:
    """The results in ``folder``.

    Raises:
        BrokenArtifact: there is no metrics.json, a file is not JSON, or one does not hold what ``schema`` says it must.
    """
    raw = _read_object(folder / "metrics.json")
    if raw is None:
        raise BrokenArtifact(f"{folder} holds no metrics.json, so it is not the folder of a finished run")
    metrics = check(raw, str(folder / "metrics.json"))
    return Results(metrics, _read_predictions(folder / "predictions.jsonl", metrics), _read_object(folder / "config.json"),
                   _read_object(folder / "environment.json"), _read_object(folder / "data.json"))


def _read_object(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    found = _parse(path.read_bytes(), str(path))
    if not isinstance(found, dict):
        raise BrokenArtifact(f"{path} must hold an object, found a {type(found).__name__}")
    return found


def _read_predictions(path: Path, metrics: Metrics) -> list[Prediction]:
    if not path.exists():
        return []
    with path.open("rb") as lines:
        return [check_prediction(_parse(line, f"{path}, line {number}"), metrics, f"{path}, line {number}")
                for number, line in enumerate(lines, 1) if line.strip()]


def _parse(raw: bytes, place: str) -> Any:
    try:
        return json.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BrokenArtifact(f"{place} is not JSON: {error}") from error

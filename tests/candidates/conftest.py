"""Lets these tests use the tiny models and small jobs of other rooms, and keeps features in a folder of their own."""
from __future__ import annotations

import sys
from pathlib import Path

import pytest

for room in ("models", "train"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / room))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))

"""Stores of tests lie in folders of their own."""
from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "trunk"

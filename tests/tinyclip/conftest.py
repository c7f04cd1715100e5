"""The reference arrays and the small folders are read by what lies beside other tests."""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

for room in ("methods", "models"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / room))


@pytest.fixture
def teacher() -> Any:
    """A small CLIP of three image and two text blocks."""
    from small_clips import make

    return make()

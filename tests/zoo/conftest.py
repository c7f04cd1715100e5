"""The small models live beside the tests of the methods, and those in folders beside the tests of loading."""
from __future__ import annotations

import sys
from pathlib import Path

for room in ("methods", "models"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / room))

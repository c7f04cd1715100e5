"""The sample runs lie beside the tests; they can be imported whichever way the tests are collected."""
from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

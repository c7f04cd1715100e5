"""Keep transformers from talking."""
from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _quiet() -> None:
    pytest.importorskip("transformers").logging.set_verbosity_error()

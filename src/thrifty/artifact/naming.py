"""Edits by the names that files call them."""
from __future__ import annotations

from typing import Any

from ..core import registered


def named(edit: str) -> type[Any]:
    """The edit, or shared module, of that name. All that this library has are registered by then; nothing else is imported.

    Raises:
        BrokenArtifact: there is none.
    """
    import thrifty.composition
    import thrifty.methods  # noqa: F401

    return registered(edit)

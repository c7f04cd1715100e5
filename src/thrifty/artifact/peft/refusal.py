"""What an attachment can do and a PEFT file cannot say."""
from __future__ import annotations

from ...core.errors import ThriftyError


class CannotExpress(ThriftyError, ValueError):
    """There is no PEFT adapter that computes the same."""
